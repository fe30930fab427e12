"""Relax to Relax rewrites, one per file (imported as ``tvmquant.passes``)."""
