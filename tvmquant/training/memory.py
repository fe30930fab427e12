"""Let the memory of tensors be used again, rather than given back and cleared anew each time."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# Of malloc.h: parameters of mallopt, and what they can be at most.
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
MOST_MMAP_THRESHOLD: Final = 32 << 20
MOST_TRIM_THRESHOLD: Final = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees, for its next tensors.

    By default a tensor of some MB is mapped anew, and the system clears its pages when they are
    first written: of training ReActNet-20, half of the time. Where the C library is another one,
    nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MOST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, MOST_TRIM_THRESHOLD)
