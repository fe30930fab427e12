"""Built-in Relax operators that only move or select integers; they work for floats alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvmquant.arithmetic import Array
from tvmquant.simulator.calls import OpCall, Operator, from_nchw, to_nchw
from tvmquant.simulator.windows import pad_spatial, reduce_windows


def reshape(call: OpCall) -> Array:
    """Reshape to the shape operand, whose symbols are already bound."""
    result: Array = call.args[0].reshape(call.args[1])
    return result


def flatten(call: OpCall) -> Array:
    """Flatten to one axis."""
    result: Array = call.args[0].reshape(-1)
    return result


def batch_flatten(call: OpCall) -> Array:
    """Flatten all axes but the first."""
    result: Array = call.args[0].reshape(len(call.args[0]), -1)
    return result


def permute_dims(call: OpCall) -> Array:
    """Permute the axes; without ``axes``, reverse them."""
    return np.transpose(call.args[0], call.attrs["axes"])


def concat(call: OpCall) -> Array:
    """Concatenate a tuple of arrays."""
    result: Array = np.concatenate(call.args[0], axis=call.attrs["axis"])
    return result


def split(call: OpCall) -> tuple[Array, ...]:
    """Split into equal sections, or at indices."""
    return tuple(np.split(call.args[0], call.attrs["indices_or_sections"], axis=call.attrs["axis"]))


def strided_slice(call: OpCall) -> Array:
    """Slice some axes; ends beyond the array are clamped, as in Python."""
    x, axes, begin, end, *strides = call.args
    at = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        at[axis] = slice(begin[i], end[i], strides[0][i] if strides else 1)
    result: Array = x[tuple(at)]
    return result


def squeeze(call: OpCall) -> Array:
    """Drop axes of extent 1."""
    axis = call.attrs["axis"]
    result: Array = np.squeeze(call.args[0], None if axis is None else tuple(axis))
    return result


def expand_dims(call: OpCall) -> Array:
    """Insert axes of extent 1."""
    return np.expand_dims(call.args[0], tuple(call.attrs["axis"]))


def broadcast_to(call: OpCall) -> Array:
    """Broadcast to a shape."""
    return np.broadcast_to(call.args[0], call.args[1])


def take(call: OpCall) -> Array:
    """Take indices along one axis; those computed at run time wrap around."""
    x, index = call.args
    result: Array = np.take(x, index, axis=call.attrs["axis"], mode="wrap")
    return result


def flip(call: OpCall) -> Array:
    """Reverse one axis."""
    return np.flip(call.args[0], call.attrs["axis"])


def pad(call: OpCall) -> Array:
    """Pad with a constant or its own values; ``pad_width`` alternates before and after."""
    x, widths = call.args[0], np.reshape(call.attrs["pad_width"], (-1, 2))
    if call.attrs["pad_mode"] != "constant":
        return np.pad(x, widths, _PAD_MODES[call.attrs["pad_mode"]])
    return np.pad(x, widths, constant_values=x.dtype.type(call.attrs["pad_value"]))


_PAD_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def max_pool2d(call: OpCall) -> Array:
    """Maximum over windows; padding holds the least value of the type.

    With ``ceil_mode`` a last window that the input does not fill counts too, unless it would start
    beyond the input and its leading padding.
    """
    a = call.attrs
    x = to_nchw(call.args[0], call)
    info: Any = np.iinfo(x.dtype) if x.dtype.kind in "iu" else np.finfo(x.dtype)
    padding = list(a["padding"])
    if a["ceil_mode"]:
        for i in (0, 1):
            stride, reach = a["strides"][i], a["dilation"][i] * (a["pool_size"][i] - 1)
            last = -(-(x.shape[2 + i] + padding[i] + padding[2 + i] - reach - 1) // stride)
            if last * stride >= x.shape[2 + i] + padding[i]:
                last -= 1
            padding[2 + i] = last * stride + reach + 1 - padding[i] - x.shape[2 + i]
    padded = pad_spatial(x, padding, info.min)
    return from_nchw(
        reduce_windows(padded, np.maximum, a["pool_size"], a["strides"], a["dilation"]), call
    )


def _extreme(function: Callable[..., Array]) -> Operator:
    """Take the extreme over ``axis`` (all axes if None)."""

    def apply(call: OpCall) -> Array:
        axis = call.attrs["axis"]
        axes = None if axis is None else tuple(axis)
        return function(call.args[0], axis=axes, keepdims=call.attrs["keepdims"])

    return apply


def _position_of_extreme(function: Callable[..., Array]) -> Operator:
    """Return where the extreme lies along ``axis``: the first of equals, int64."""

    def apply(call: OpCall) -> Array:
        axis, keep = call.attrs["axis"], call.attrs["keepdims"]
        return np.asarray(function(call.args[0], axis=axis, keepdims=keep), np.int64)

    return apply


def tile(call: OpCall) -> Array:
    """Repeat along each axis."""
    return np.tile(call.args[0], call.attrs["repeats"])


def full(call: OpCall) -> Array:
    """Fill a shape with one number."""
    (shape, value), dtype = call.args, call.attrs["dtype"]
    return np.full(shape, value, value.dtype if dtype is None else str(dtype))


STRUCTURAL_OPS: dict[str, Operator] = {
    "relax.reshape": reshape,
    "relax.flatten": flatten,
    "relax.nn.batch_flatten": batch_flatten,
    "relax.permute_dims": permute_dims,
    "relax.concat": concat,
    "relax.split": split,
    "relax.strided_slice": strided_slice,
    "relax.squeeze": squeeze,
    "relax.expand_dims": expand_dims,
    "relax.broadcast_to": broadcast_to,
    "relax.take": take,
    "relax.flip": flip,
    "relax.nn.pad": pad,
    "relax.nn.max_pool2d": max_pool2d,
    "relax.max": _extreme(np.max),
    "relax.min": _extreme(np.min),
    "relax.argmax": _position_of_extreme(np.argmax),
    "relax.argmin": _position_of_extreme(np.argmin),
    "relax.tile": tile,
    "relax.full": full,
}
