"""Random geometry for kernels with a window: extents of 1, ragged tiles, borders on one side."""

from __future__ import annotations

from typing import Any, TypedDict

from hypothesis import strategies as st

# enough to meet every kind of loop, few enough for a suite that compiles each
EXAMPLES = 10


class Window(TypedDict):
    """What convolutions of all kinds have in common."""

    batch: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    input_zero_point: int


@st.composite
def windows(draw: Any, transposed: bool = False) -> Window:
    """Draw a window and an image of which something is computed."""
    kernel, strides, dilation = (
        draw(st.tuples(st.integers(1, high), st.integers(1, high))) for high in (4, 3, 2)
    )
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, r - 1)) for r in reach * 2)
    if transposed:
        # the least extent that leaves a pixel when the borders are cut off
        cut = [padding[i] + padding[2 + i] + 1 - reach[i] for i in range(2)]
        least = [1 + max(0, -(-c // s)) for c, s in zip(cut, strides, strict=True)]
    else:
        least = [max(1, r - padding[i] - padding[2 + i]) for i, r in enumerate(reach)]
    height, width = (draw(st.integers(low, low + 10)) for low in least)
    return Window(
        batch=draw(st.integers(1, 2)),
        height=height,
        width=width,
        kernel=kernel,
        strides=strides,
        padding=padding,
        dilation=dilation,
        input_zero_point=draw(st.just(0) | st.integers(0, 255)),
    )
