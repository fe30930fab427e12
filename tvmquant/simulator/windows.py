"""Sliding windows over NCHW arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvmquant.arithmetic import Array


def pad_spatial(x: Array, padding: Sequence[int], value: float) -> Array:
    """Pad (top, left, bottom, right) of an NCHW array with ``value``; negative amounts crop."""
    top, left, bottom, right = padding
    if not any(padding):
        return x
    height, width = x.shape[2:]
    x = x[:, :, max(0, -top) : height - max(0, -bottom), max(0, -left) : width - max(0, -right)]
    rows, columns = (max(0, top), max(0, bottom)), (max(0, left), max(0, right))
    return np.pad(x, ((0, 0), (0, 0), rows, columns), constant_values=value)


def sliding_windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Array:
    """View an NCHW array as its windows, shape (N, C, out_h, out_w, kernel_h, kernel_w)."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(2, 3))
    return view[:, :, :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]


def stretch(
    x: Array,
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    value: float,
) -> tuple[Array, tuple[int, int, int, int]]:
    """Return the input and the padding of the stride-1 convolution that a transposed one equals.

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel, strides, dilation : (vertical, horizontal)
    padding : (top, left, bottom, right)
        Of the transposed convolution.
    output_padding : (bottom, right)
    value : float
        What stands between the elements of ``x``.

    Returns
    -------
    array (N, C, (H - 1) * strides[0] + 1, (W - 1) * strides[1] + 1)
    (top, left, bottom, right)
        May be negative, see `pad_spatial`. The kernel is to be flipped.
    """
    count, channels, height, width = x.shape
    shape = (count, channels, (height - 1) * strides[0] + 1, (width - 1) * strides[1] + 1)
    stretched = np.full(shape, value, x.dtype)
    stretched[:, :, :: strides[0], :: strides[1]] = x
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    top, left, bottom, right = padding
    return stretched, (
        reach[0] - top,
        reach[1] - left,
        reach[0] - bottom + output_padding[0],
        reach[1] - right + output_padding[1],
    )


def reduce_windows(
    x: Array,
    reduction: np.ufunc,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> Array:
    """Reduce the windows of an NCHW array with an associative ufunc, rows then columns.

    Separable: ``kernel_h + kernel_w`` passes instead of ``kernel_h * kernel_w``.
    """
    for axis in (2, 3):
        size, stride, step = kernel[axis - 2], strides[axis - 2], dilation[axis - 2]
        count = (x.shape[axis] - step * (size - 1) - 1) // stride + 1
        at = [slice(None)] * 4
        result: Array | None = None
        for tap in range(size):
            start = tap * step
            at[axis] = slice(start, start + (count - 1) * stride + 1, stride)
            part = x[tuple(at)]
            result = part.copy() if result is None else reduction(result, part, out=result)
        assert result is not None  # size >= 1
        x = result
    return x
