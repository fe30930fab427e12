"""Operators of tensors whose range is found at run time, by `tvmquant.arithmetic`."""

from __future__ import annotations

import numpy as np

from tvmquant import arithmetic
from tvmquant.arithmetic import Array
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.simulator.accumulate import to_int32
from tvmquant.simulator.calls import OpCall, Operator, aligned


def dynamic_range(call: OpCall) -> Array:
    """Equation (4)."""
    return arithmetic.dynamic_range(call.args[0])


def dynamic_quantize(call: OpCall) -> Array:
    """Equation (1), in a frame of zero points."""
    x, found = call.args
    q = arithmetic.quantize_by_range(x, found)
    top, left, bottom, right = call.attrs["padding"]
    if not (top or left or bottom or right):
        return q
    spatial = [(top, bottom), (left, right)]
    widths = [(0, 0), *spatial, (0, 0)]
    if call.attrs["layout"] == "NCHW":
        widths = [(0, 0), (0, 0), *spatial]
    return np.pad(q, widths, constant_values=int(found[1]))


def dynamic_dequantize(call: OpCall) -> Array:
    """Equation (5), then a clip."""
    sums, found, *parameters = call.args
    weight_sums, scale, bias = (aligned(a, sums.ndim, call) for a in parameters[:3])
    total = sums.astype(np.int64) - int(found[1]) * weight_sums.astype(np.int64)
    if len(parameters) > 3:
        window_sums, weight_zero_point = parameters[3], aligned(parameters[4], sums.ndim, call)
        total = total - weight_zero_point.astype(np.int64) * window_sums
    real = arithmetic.real_sums(to_int32(total, call.layer), found, scale, bias)
    low, high = np.float32(call.attrs["low"]), np.float32(call.attrs["high"])
    clipped: Array = np.clip(real, low, high)
    return clipped


DYNAMIC_OPS: dict[str, Operator] = {
    dyn.DYNAMIC_RANGE: dynamic_range,
    dyn.DYNAMIC_QUANTIZE: dynamic_quantize,
    dyn.DYNAMIC_DEQUANTIZE: dynamic_dequantize,
}
