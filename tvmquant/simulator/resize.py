"""Nearest-neighbour ``image.resize2d``, with the float32 coordinates that TVM computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvmquant.arithmetic import Array, IntArray
from tvmquant.errors import QuantizationError
from tvmquant.simulator.calls import OpCall, Operator, from_nchw, to_nchw

# TVM nudges coordinates by this before floor and ceil.
_EPSILON = np.float32(1e-5)
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round": np.rint,
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": lambda x: np.floor(x + _EPSILON),
    "ceil": lambda x: np.ceil(x - _EPSILON),
}


def resize2d(call: OpCall) -> Array:
    """Select the nearest input position of every output position.

    Raises
    ------
    QuantizationError
        If the method interpolates (linear, cubic), which is no integer operation.
    """
    if call.attrs["method"] != "nearest_neighbor":
        raise QuantizationError(
            f"layer {call.layer}: the simulator resizes by nearest_neighbor only, found "
            f"{call.attrs['method']!r} (relax.image.resize2d)"
        )
    x = to_nchw(call.args[0], call)
    start_y, start_x, end_y, end_x = (float(v) for v in call.attrs["roi"])
    (in_h, in_w), (out_h, out_w) = x.shape[2:], call.args[1]
    rows = _coordinates(in_h, out_h, start_y, end_y, call)
    columns = _coordinates(in_w, out_w, start_x, end_x, call)
    resized = x[:, :, _nearest(rows, in_h, out_h, call)][..., _nearest(columns, in_w, out_w, call)]
    if call.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        outside = ((rows < 0) | (rows > in_h - 1))[:, None] | (columns < 0) | (columns > in_w - 1)
        resized = np.where(outside, x.dtype.type(call.attrs["extrapolation_value"]), resized)
    return from_nchw(resized, call)


def _coordinates(extent: int, target: int, start: float, end: float, call: OpCall) -> Array:
    """Map output positions to real input positions, in float32."""
    x = np.arange(target, dtype=np.float32)
    scale, half = np.float32(extent / target), np.float32(0.5)
    match call.attrs["coordinate_transformation_mode"]:
        case "half_pixel":
            return (x + half) * scale - half
        case "align_corners":
            return np.float32((extent - 1) / max(target - 1, 1)) * x
        case "asymmetric":
            return scale * x
        case "pytorch_half_pixel":
            return (x + half) * scale - half if target > 1 else np.zeros_like(x)
        case "tf_half_pixel_for_nn":
            return (x + half) * scale
        case "tf_crop_and_resize":
            if target == 1:
                return np.full_like(x, 0.5 * (start + end) * (extent - 1))
            step = x * np.float32(end - start) * np.float32(extent - 1) / np.float32(target - 1)
            return np.float32(start * (extent - 1)) + step
        case mode:
            raise QuantizationError(
                f"layer {call.layer}: unknown coordinate_transformation_mode {mode!r}"
            )


def _nearest(coordinates: Array, extent: int, target: int, call: OpCall) -> IntArray:
    rounding = call.attrs["rounding_method"]
    align = call.attrs["coordinate_transformation_mode"] == "align_corners"
    rounding = rounding or ("round" if align else "floor")
    if rounding not in _ROUNDINGS:
        raise QuantizationError(f"layer {call.layer}: unknown rounding_method {rounding!r}")
    index: IntArray = _ROUNDINGS[rounding](coordinates).astype(np.int64)
    return np.clip(index, 0, extent - 1)


RESIZE_OPS: dict[str, Operator] = {"relax.image.resize2d": resize2d}
