"""Padding of sliding windows: auto_pad and ceil_mode become explicit numbers at import.

``pads`` is (top, left, bottom, right), as in ONNX and in Relax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tvmquant.frontend.dimensions import UnsupportedNodeError, same_windows
from tvmquant.frontend.node import Node


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
        If the window is not 2-D, or its padding is negative.
    """
    if len(kernel) != 2:
        raise UnsupportedNodeError(f"its window is {len(kernel)}-D, only 2-D is supported")
    strides = _pair(node.integers("strides", [1, 1]), "strides")
    dilations = _pair(node.integers("dilations", [1, 1]), "dilations")
    window = Window((kernel[0], kernel[1]), strides, dilations, (0, 0, 0, 0))
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0, 0, 0, 0]
        for axis in range(2):
            total = same_windows(size[axis], kernel[axis], strides[axis], dilations[axis])
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + 2] = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto == "VALID":
        pads = [0, 0, 0, 0]
    else:
        pads = node.integers("pads", [0, 0, 0, 0])
    if len(pads) != 4 or min(pads) < 0:
        raise UnsupportedNodeError(f"its pads are {pads}, expected 4 numbers >= 0")
    return replace(window, pads=(pads[0], pads[1], pads[2], pads[3]))


def _pair(values: list[int], name: str) -> tuple[int, int]:
    if len(values) != 2 or min(values) < 1:
        raise UnsupportedNodeError(f"its {name} are {values}, expected 2 numbers >= 1")
    return values[0], values[1]


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
