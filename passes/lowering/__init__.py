"""Calls of kernels in place of operators, by kind of operator; each module lists its handlers."""
