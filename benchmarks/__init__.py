"""What backs every figure in the README, one command each: ``python -m benchmarks``."""
