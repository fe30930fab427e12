"""Quantizers, convolutions and products in float64, as ONNX defines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]

_CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}


def wide(array: Array) -> Array:
    """Return float32 as float64, and all else as it is."""
    return array.astype(np.float64) if array.dtype == np.float32 else array


def along(values: Any, like: Array, axis: int) -> NDArray[np.float64]:
    """Let values, one or one for each channel, broadcast along an axis."""
    values = np.asarray(values, np.float64)
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % like.ndim else 1 for i in range(like.ndim)])


def quantized(x: Array, scale: Any, zero_point: Any = None, axis: int = 1) -> Array:
    """Return ``clip(round_half_even(x / scale) + zero_point)``; uint8 without a zero point."""
    zero_point = np.uint8(0) if zero_point is None else zero_point
    levels = np.iinfo(np.asarray(zero_point).dtype)
    q = np.rint(wide(x) / along(scale, x, axis)) + along(zero_point, x, axis)
    return np.clip(q, levels.min, levels.max).astype(levels.dtype)


def dequantized(x: Array, scale: Any, zero_point: Any = None, axis: int = 1) -> Array:
    """Return ``(x - zero_point) * scale``."""
    zero_point = 0 if zero_point is None else zero_point
    return (wide(x) - along(zero_point, x, axis)) * along(scale, x, axis)


def convolved(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: Any = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Any = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Return a convolution of one or two dimensions; the attributes are ONNX's."""
    count = x.ndim - 2
    pads = pads or [0] * 2 * count
    sides = [p for i in reversed(range(count)) for p in (pads[i], pads[i + count])]
    found = _CONVOLUTIONS[count](
        torch.nn.functional.pad(_tensor(x), sides), _tensor(w), None if b is None else _tensor(b),
        stride=strides or 1, dilation=dilations or 1, groups=group,
    )  # fmt: skip
    return np.asarray(found.numpy())


def product(a: Array, b: Array, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> Array:
    """Return ``alpha * a @ b``; the attributes are those of ONNX's Gemm."""
    a, b = (a.T if transA else a), (b.T if transB else b)
    return np.asarray(alpha * (wide(a) @ wide(b)))


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float64))
