"""Processors of AArch64 that are emulated: what they execute, exactly, and how much of it."""
