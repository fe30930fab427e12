"""``image.resize2d``: nearest-neighbour and linear, of any type."""

from __future__ import annotations

import numpy as np

from tvmquant.arithmetic import Array
from tvmquant.errors import QuantizationError
from tvmquant.resize import WEIGHT_BITS, coordinates, linear, nearest
from tvmquant.simulator.calls import OpCall, Operator, from_nchw, to_nchw


def resize2d(call: OpCall) -> Array:
    """Select, or interpolate between, the nearest input positions of every output position.

    Raises
    ------
    QuantizationError
        If the method is cubic.
    """
    method = call.attrs["method"]
    x = to_nchw(call.args[0], call)
    if method not in ("nearest_neighbor", "linear"):
        raise QuantizationError(
            f"layer {call.layer}: the simulator resizes by nearest_neighbor and linear only; found "
            f"{method!r} (relax.image.resize2d)"
        )
    start_y, start_x, end_y, end_x = (float(v) for v in call.attrs["roi"])
    (in_h, in_w), (out_h, out_w) = x.shape[2:], call.args[1]
    mode, rounding = call.attrs["coordinate_transformation_mode"], call.attrs["rounding_method"]
    rows = coordinates(in_h, out_h, mode, start_y, end_y)
    columns = coordinates(in_w, out_w, mode, start_x, end_x)
    if method == "linear" and x.dtype.kind != "f":
        bits = WEIGHT_BITS[x.dtype.name]
        total = _blended(_blended(x.astype(np.int64), 2, rows, bits), 3, columns, bits)
        half = np.int64(1) << (2 * bits - 1)
        resized = ((total + half) >> (2 * bits)).astype(x.dtype)
    elif method == "linear":
        resized = _interpolate(_interpolate(x, 2, rows), 3, columns)
    else:
        resized = x[:, :, nearest(rows, in_h, mode, rounding)]
        resized = resized[..., nearest(columns, in_w, mode, rounding)]
    if mode == "tf_crop_and_resize":
        outside = ((rows < 0) | (rows > in_h - 1))[:, None] | (columns < 0) | (columns > in_w - 1)
        resized = np.where(outside, x.dtype.type(call.attrs["extrapolation_value"]), resized)
    return from_nchw(resized, call)


def _blended(x: Array, axis: int, positions: Array, bits: int) -> Array:
    """Interpolate integers along an axis, times ``2**bits``."""
    lower, upper, weight = linear(positions, x.shape[axis], bits)
    weight = weight.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    low, high = np.take(x, lower, axis), np.take(x, upper, axis)
    result: Array = low * ((1 << bits) - weight) + high * weight
    return result


def _interpolate(x: Array, axis: int, positions: Array) -> Array:
    """Interpolate between the two positions around each one; the border's repeat beyond it."""
    lower = np.floor(positions).astype(np.int64)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    weight = (positions - lower).astype(x.dtype).reshape(shape)
    before, after = (
        np.take(x, np.clip(at, 0, x.shape[axis] - 1), axis) for at in (lower, lower + 1)
    )
    result: Array = before * (1 - weight) + after * weight
    return result


RESIZE_OPS: dict[str, Operator] = {"relax.image.resize2d": resize2d}
