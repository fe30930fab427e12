"""Exact integer convolutions and dense products on floating-point BLAS.

A float matrix product of integers is exact, in any order of summation, while the sum of the
absolute values of its terms stays below 2**24 (float32) or 2**53 (float64). Both bounds follow from
the operands, so the faster type is chosen where it is exact and none is used where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmquant.arithmetic import Array, IntArray
from tvmquant.errors import QuantizationError
from tvmquant.simulator.calls import batch_slices
from tvmquant.simulator.windows import pad_spatial, sliding_windows, stretch

_INT32 = np.iinfo(np.int32)


def to_int32(acc: Array, layer: str) -> Array:
    """Narrow an exact accumulator to int32.

    Raises
    ------
    QuantizationError
        If a value does not fit.
    """
    if acc.size:
        low, high = int(acc.min()), int(acc.max())
        if low < _INT32.min or high > _INT32.max:
            raise QuantizationError(
                f"layer {layer}: the accumulator reaches [{low}, {high}] and leaves int32; "
                "lower its bit widths or check its scales"
            )
    return acc.astype(np.int32)


def conv2d(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int,
    layer: str,
) -> Array:
    """Return ``bias + sum(x * weight)`` as int32, NCHW.

    Parameters
    ----------
    x : integer array (N, C, H, W)
    weight : integer array (O, C / groups, kernel_h, kernel_w)
    bias : integer array (O,)
    strides, dilation : (vertical, horizontal)
    padding : (top, left, bottom, right)
    groups : int
    pad_value : int
        The input zero point.
    layer : str
        For messages.

    Raises
    ------
    QuantizationError
        If the accumulator leaves int32, or cannot be computed exactly.
    """
    exact = _exact_dtype(x, weight, pad_value, layer)
    kernel = weight.shape[2:]
    windows = sliding_windows(pad_spatial(x, padding, pad_value), kernel, strides, dilation)
    count, channels, out_h, out_w = windows.shape[:4]
    outputs = weight.shape[0]
    factors = weight.astype(exact).reshape(groups, outputs // groups, -1)
    offsets = bias.astype(np.int64).reshape(-1, 1)
    result = np.empty((count, outputs, out_h * out_w), np.int32)
    image = channels * kernel[0] * kernel[1] * out_h * out_w * factors.itemsize
    depthwise = weight.shape[1] == 1 and groups > 1
    for part in batch_slices(count, image):
        product = _taps if depthwise else _matrix_product
        acc = product(windows[part], factors).reshape(-1, outputs, out_h * out_w)
        result[part] = to_int32(acc.astype(np.int64) + offsets, layer)
    return result.reshape(count, outputs, out_h, out_w)


def _matrix_product(windows: Array, factors: Array) -> Array:
    """Multiply (N, C, h, w, kh, kw) with (groups, outputs, C / groups * kh * kw)."""
    count, _, out_h, out_w = windows.shape[:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).astype(factors.dtype, order="C")
    columns = columns.reshape(count, len(factors), -1, out_h * out_w)
    product: Array = np.matmul(factors, columns)
    return product


def _taps(windows: Array, factors: Array) -> Array:
    """Do the same for one input channel per group, one multiplication per kernel position."""
    count, groups, out_h, out_w, _, kernel_w = windows.shape
    acc = np.zeros((count, groups, factors.shape[1], out_h, out_w), factors.dtype)
    for tap in range(factors.shape[2]):
        x = windows[..., tap // kernel_w, tap % kernel_w].astype(factors.dtype)
        acc += x[:, :, None] * factors[None, :, :, tap, None, None]
    return acc


def conv2d_transpose(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    pad_value: int,
    layer: str,
) -> Array:
    """Return the transposed convolution as int32, NCHW.

    Parameters
    ----------
    weight : integer array (O, C / groups, kernel_h, kernel_w)
        Not flipped: ``weight[o, i, ky, kx]`` is what ONNX stores as ``weight[i, o, ky, kx]``.
    output_padding : (bottom, right)

    Notes
    -----
    A stride-1 convolution of the stretched input with the flipped kernel. Every position of the
    stretched and padded input that holds no activation holds ``pad_value``, so that the zero point
    contributes ``pad_value * sum(weight)`` everywhere and folds into the bias.
    """
    stretched, margins = stretch(
        x,
        weight.shape[2:],
        strides=strides,
        padding=padding,
        dilation=dilation,
        output_padding=output_padding,
        value=pad_value,
    )
    return conv2d(
        stretched,
        weight[:, :, ::-1, ::-1],
        bias,
        strides=(1, 1),
        padding=margins,
        dilation=dilation,
        groups=groups,
        pad_value=pad_value,
        layer=layer,
    )


def dense(x: Array, weight: Array, bias: Array, layer: str) -> Array:
    """Return ``bias + x @ weight.T`` over the last axis as int32; weight is (O, K)."""
    exact = _exact_dtype(x, weight, 0, layer)
    acc = x.astype(exact) @ weight.astype(exact).T
    return to_int32(acc.astype(np.int64) + bias.astype(np.int64), layer)


def _exact_dtype(x: Array, weight: Array, pad_value: int, layer: str) -> Any:
    terms: IntArray = np.abs(weight.astype(np.int64)).reshape(weight.shape[0], -1).sum(axis=1)
    extremes = [abs(pad_value)] + ([abs(int(x.min())), abs(int(x.max()))] if x.size else [])
    bound = int(terms.max(initial=0)) * max(extremes)
    if bound <= 2**24:
        return np.float32
    if bound < 2**53:
        return np.float64
    raise QuantizationError(
        f"layer {layer}: sums of {bound} and more cannot be simulated exactly (limit 2**53); "
        "its weights or activations are not quantized to 8 bits"
    )
