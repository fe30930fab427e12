"""Padding of sliding windows: auto_pad and ceil_mode become explicit numbers at import.

``pads`` is (top, left, bottom, right), as in ONNX and in Relax. The window of a signal, which has a
width only, is one of height 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvmquant.frontend.dimensions import UnsupportedNodeError, same_windows
from tvmquant.frontend.node import Node

# Of strides, dilations, pads and windows, which TVM multiplies as 32-bit numbers.
MAX_REACH = 2**24


@dataclass(frozen=True)
class Window:
    """A 2-D sliding window: (height, width) of everything, ``pads`` of the four sides."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    def reach(self, axis: int) -> int:
        """Return how many elements the window spans along ``axis``."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def attributes(self) -> dict[str, tuple[int, ...]]:
        """Return the attributes of Relax operators."""
        return {"strides": self.strides, "padding": self.pads, "dilation": self.dilations}


def read_window(node: Node, kernel: tuple[int, ...], size: tuple[int, int]) -> Window:
    """Return the window of a convolution or pooling node with its padding resolved.

    Parameters
    ----------
    node : Node
    kernel : tuple of int
        Extents of the kernel, from the attribute or from the weight.
    size : (int, int)
        Height and width of the input.

    Raises
    ------
    UnsupportedNodeError
        As of `check_attributes`, or if the window reaches beyond `MAX_REACH`.
    """
    check_attributes(node, len(kernel))
    strides = _pair(node, "strides", len(kernel))
    dilations = _pair(node, "dilations", len(kernel))
    sides = widen(kernel, 1)
    window = Window((sides[0], sides[1]), strides, dilations, (0, 0, 0, 0))
    if max(window.reach(0), window.reach(1)) > MAX_REACH:
        raise UnsupportedNodeError(
            f"its window {[*kernel]} with dilations {[*dilations]} reaches over more than "
            f"{MAX_REACH} elements"
        )
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0, 0, 0, 0]
        for axis in range(2):
            total = same_windows(size[axis], sides[axis], strides[axis], dilations[axis])
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + 2] = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto == "VALID":
        pads = [0, 0, 0, 0]
    else:
        pads = read_pads(node, len(kernel))
    return replace(window, pads=(pads[0], pads[1], pads[2], pads[3]))


def check_attributes(node: Node, rank: int) -> None:
    """Check the attributes of a window over ``rank`` axes.

    Raises
    ------
    UnsupportedNodeError
        If the window is neither 1-D nor 2-D, its size, strides or dilations are not positive, its
        padding is negative, or one of these is beyond `MAX_REACH`.
    """
    if rank not in (1, 2):
        raise UnsupportedNodeError(
            f"its window is {rank}-D, only windows over one or two axes are supported"
        )
    for name in ("kernel_shape", "strides", "dilations"):
        _pair(node, name, rank)
    pads = read_pads(node, rank)
    if min(pads) < 0 or max(pads) > MAX_REACH:
        raise UnsupportedNodeError(f"its pads are {pads}, expected 0 to {MAX_REACH}")


def widen(values: Sequence[int], neutral: int) -> list[int]:
    """Return one number for the height and one for the width; a signal's height is ``neutral``."""
    return [*values] if len(values) == 2 else [neutral, *values]


def read_pads(node: Node, rank: int) -> list[int]:
    """Return the attribute ``pads`` of a window over ``rank`` axes as (top, left, bottom, right).

    Raises
    ------
    UnsupportedNodeError
        If it has not two numbers per axis.
    """
    pads = node.integers("pads", [0] * (2 * rank))
    if len(pads) != 2 * rank:
        raise UnsupportedNodeError(f"its pads are {pads}, expected {2 * rank} numbers")
    return pads if rank == 2 else [0, pads[0], 0, pads[1]]


def _pair(node: Node, name: str, rank: int) -> tuple[int, int]:
    values = node.integers(name, [1] * rank)
    if len(values) != rank or min(values) < 1 or max(values) > MAX_REACH:
        raise UnsupportedNodeError(
            f"{name}={values}, expected {rank} numbers from 1 to {MAX_REACH}"
        )
    height, width = widen(values, 1)
    return height, width


def output_extent(window: Window, size: tuple[int, int], axis: int, *, ceil: bool) -> int:
    """Return how many windows fit along ``axis``.

    With ``ceil`` a last window may hang over the end, as long as it starts inside the input or its
    leading padding.
    """
    leading, trailing = window.pads[axis], window.pads[axis + 2]
    room = size[axis] + leading + trailing - window.reach(axis)
    if room < 0:
        raise UnsupportedNodeError("its window is larger than its padded input")
    stride = window.strides[axis]
    if not ceil:
        return room // stride + 1
    extent = math.ceil(room / stride) + 1
    if (extent - 1) * stride >= size[axis] + leading:
        extent -= 1
    return extent


def pad_for_ceil(window: Window, size: tuple[int, int]) -> Window:
    """Return the window with trailing padding so that rounding down gives the windows of ceil."""
    pads = list(window.pads)
    for axis in range(2):
        extent = output_extent(window, size, axis, ceil=True)
        needed = (extent - 1) * window.strides[axis] + window.reach(axis)
        overhang = needed - size[axis] - pads[axis] - pads[axis + 2]
        pads[axis + 2] += max(overhang, 0)
    return replace(window, pads=(pads[0], pads[1], pads[2], pads[3]))
