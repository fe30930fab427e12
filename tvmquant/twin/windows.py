"""Torch functions of the operators that slide over an image: convolution, pooling, padding, resize.

Paddings are (top, left, bottom, right) and may be asymmetric, which torch's own operators refuse:
what they do not take is padded explicitly. Layouts are NCHW and OIHW, the only ones before
integerization.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor
from tvm import relax

from tvmquant.resize import ROUNDINGS, WEIGHT_BITS, coordinates, linear, nearest
from tvmquant.twin.attributes import integers, require

# numpy's names of the modes that pad with a tensor's own values
_PAD_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad_spatial(x: Tensor, padding: list[int], value: float = 0.0) -> Tensor:
    """Pad (top, left, bottom, right) of an NCHW tensor; negative amounts crop."""
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def _conv2d(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    attrs = call.attrs
    require("the data layout", attrs.data_layout, "NCHW")
    require("the kernel layout", attrs.kernel_layout, "OIHW")
    strides, dilation = integers(attrs.strides), integers(attrs.dilation)
    groups, padding = int(attrs.groups), integers(attrs.padding)
    if padding[:2] == padding[2:]:
        both = padding[:2]
        return lambda x, w: F.conv2d(x, w, None, strides, both, dilation, groups)
    return lambda x, w: F.conv2d(pad_spatial(x, padding), w, None, strides, 0, dilation, groups)


def _conv2d_transpose(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    attrs = call.attrs
    require("the data layout", attrs.data_layout, "NCHW")
    require("the kernel layout", attrs.kernel_layout, "IOHW")
    strides, dilation, groups = (
        integers(attrs.strides),
        integers(attrs.dilation),
        int(attrs.groups),
    )
    top, left, bottom, right = integers(attrs.padding)
    below, beside = integers(attrs.output_padding)

    def conv2d_transpose(x: Tensor, w: Tensor) -> Tensor:
        """Compute the unpadded result and cut it; output padding moves the lower and right cut."""
        full = F.conv_transpose2d(x, w, None, strides, 0, 0, groups, dilation)
        return pad_spatial(full, [-top, -left, below - bottom, beside - right])

    return conv2d_transpose


def _overflow(x: Tensor, window: list[int], strides: list[int], padding: list[int]) -> list[int]:
    """Return `padding` enlarged at the bottom and right to what ``ceil_mode`` reads beyond it."""
    top, left, bottom, right = padding
    rows = -(x.shape[2] + top + bottom - window[0]) % strides[0]
    columns = -(x.shape[3] + left + right - window[1]) % strides[1]
    return [top, left, bottom + rows, right + columns]


def _max_pool2d(call: relax.Call) -> Callable[[Tensor], Tensor]:
    attrs = call.attrs
    require("the layout", attrs.layout, "NCHW")
    kernel, strides = integers(attrs.pool_size), integers(attrs.strides)
    dilation, padding = integers(attrs.dilation), integers(attrs.padding)
    window = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    ceil_mode = bool(attrs.ceil_mode)

    def max_pool2d(x: Tensor) -> Tensor:
        pads = _overflow(x, window, strides, padding) if ceil_mode else padding
        within = all(2 * pad <= size for pad, size in zip(pads[:2], kernel, strict=True))
        if pads[:2] == pads[2:] and within:
            return F.max_pool2d(x, kernel, strides, pads[:2], dilation)
        return F.max_pool2d(pad_spatial(x, pads, -math.inf), kernel, strides, 0, dilation)

    return max_pool2d


def _avg_pool2d(call: relax.Call) -> Callable[[Tensor], Tensor]:
    attrs = call.attrs
    require("the layout", attrs.layout, "NCHW")
    kernel, strides = integers(attrs.pool_size), integers(attrs.strides)
    padding = integers(attrs.padding)
    ceil_mode, include_pad = bool(attrs.ceil_mode), bool(attrs.count_include_pad)
    dilation = integers(attrs.dilation)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]

    def mean(x: Tensor) -> Tensor:
        if dilation == [1, 1]:
            return F.avg_pool2d(x, kernel, strides)
        taps = torch.full((1, 1, *kernel), 1 / math.prod(kernel), dtype=x.dtype, device=x.device)
        pooled = F.conv2d(x.flatten(0, 1)[:, None], taps, None, strides, 0, dilation)
        return pooled.reshape(*x.shape[:2], *pooled.shape[2:])

    def avg_pool2d(x: Tensor) -> Tensor:
        """Divide by the window's elements inside the image, and inside the padding if asked.

        What ``ceil_mode`` reads beyond the padding is never counted.
        """
        pads = _overflow(x, reach, strides, padding) if ceil_mode else padding
        total = mean(pad_spatial(x, pads))
        if not any(pads) or (include_pad and pads == padding):
            return total
        counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        beyond = pads
        if include_pad:
            counted = pad_spatial(counted, padding, 1.0)
            beyond = [outer - inner for outer, inner in zip(pads, padding, strict=True)]
        return total / mean(pad_spatial(counted, beyond))

    return avg_pool2d


def _adaptive_avg_pool2d(call: relax.Call) -> Callable[[Tensor], Tensor]:
    require("the layout", call.attrs.layout, "NCHW")
    if call.attrs.output_size is None:
        return lambda x: x
    height, width = integers(call.attrs.output_size)
    return lambda x: F.adaptive_avg_pool2d(x, (height, width))


def _nn_pad(call: relax.Call) -> Callable[[Tensor], Tensor]:
    mode, value = str(call.attrs.pad_mode), float(call.attrs.pad_value)
    require("the padding mode", mode, "constant", *_PAD_MODES)
    width = integers(call.attrs.pad_width)
    pairs = [width[i : i + 2] for i in range(0, len(width), 2)]
    if mode == "constant":
        flat = [pad for pair in reversed(pairs) for pad in pair]
        return lambda x: F.pad(x, flat, value=value)

    def pad_with_own_values(x: Tensor) -> Tensor:
        for axis, pair in enumerate(pairs):
            if any(pair):
                x = _gather(x, axis, np.pad(np.arange(x.shape[axis]), pair, _PAD_MODES[mode]))
        return x

    return pad_with_own_values


def _resize2d(call: relax.Call) -> Callable[[Tensor], Tensor]:
    attrs = call.attrs
    method, mode = str(attrs.method), str(attrs.coordinate_transformation_mode)
    rounding = str(attrs.rounding_method)
    require("the layout", attrs.layout, "NCHW")
    require("the interpolation", method, "nearest_neighbor", "linear")
    require(
        "the coordinate transformation",
        mode,
        "half_pixel",
        "align_corners",
        "asymmetric",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
    )
    require("the rounding", rounding, "", *ROUNDINGS)
    size = integers(call.args[1].values)
    bits = WEIGHT_BITS.get(str(call.args[0].ty.dtype.dtype))

    def nearest_neighbor(x: Tensor) -> Tensor:
        for axis, target in zip((2, 3), size, strict=True):
            extent = x.shape[axis]
            index = nearest(coordinates(extent, target, mode), extent, mode, rounding)
            x = _gather(x, axis, index)
        return x

    def linearly(x: Tensor) -> Tensor:
        positions = [coordinates(x.shape[2 + i], n, mode) for i, n in enumerate(size)]
        return _blended(x, positions) if bits is None else _blended_integers(x, positions, bits)

    return nearest_neighbor if method == "nearest_neighbor" else linearly


def _gather(x: Tensor, axis: int, index: Any) -> Tensor:
    inside = np.clip(index, 0, x.shape[axis] - 1).astype(np.int64)
    return x.index_select(axis, torch.from_numpy(inside).to(x.device))


def _blended(x: Tensor, positions: list[Any]) -> Tensor:
    """Interpolate along rows, then columns."""
    for axis, at in zip((2, 3), positions, strict=True):
        lower = np.floor(at)
        weight = torch.from_numpy(at - lower).to(x)
        weight = weight.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = torch.lerp(_gather(x, axis, lower), _gather(x, axis, lower + 1), weight)
    return x


def _blended_integers(x: Tensor, positions: list[Any], bits: int) -> Tensor:
    """Interpolate integers with weights of ``bits`` in fixed point, and round once, half up."""
    total = x.to(torch.int64)
    for axis, at in zip((2, 3), positions, strict=True):
        lower, upper, weights = linear(at, x.shape[axis], bits)
        weight = torch.from_numpy(weights).to(x.device)
        weight = weight.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        low, high = _gather(total, axis, lower), _gather(total, axis, upper)
        total = low * ((1 << bits) - weight) + high * weight
    half = 1 << (2 * bits - 1)
    return ((total + half) >> (2 * bits)).to(x.dtype)


WINDOW_OPERATORS: dict[str, Callable[[relax.Call], Callable[..., Tensor]]] = {
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv2d_transpose": _conv2d_transpose,
    "relax.nn.max_pool2d": _max_pool2d,
    "relax.nn.avg_pool2d": _avg_pool2d,
    "relax.nn.adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "relax.nn.pad": _nn_pad,
    "relax.image.resize2d": _resize2d,
}
