"""What the functions of a library are called."""

from __future__ import annotations


def entry_name(function: str, width: int) -> str:
    """Return the name of a function at a bit width; 0 stands for the widest, or the only one."""
    return f"{function}_w{width}" if width else function
