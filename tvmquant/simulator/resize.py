"""Nearest-neighbour ``image.resize2d``."""

from __future__ import annotations

import numpy as np

from tvmquant.arithmetic import Array
from tvmquant.errors import QuantizationError
from tvmquant.resize import coordinates, nearest
from tvmquant.simulator.calls import OpCall, Operator, from_nchw, to_nchw


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
    mode, rounding = call.attrs["coordinate_transformation_mode"], call.attrs["rounding_method"]
    rows = coordinates(in_h, out_h, mode, start_y, end_y)
    columns = coordinates(in_w, out_w, mode, start_x, end_x)
    resized = x[:, :, nearest(rows, in_h, mode, rounding)]
    resized = resized[..., nearest(columns, in_w, mode, rounding)]
    if mode == "tf_crop_and_resize":
        outside = ((rows < 0) | (rows > in_h - 1))[:, None] | (columns < 0) | (columns > in_w - 1)
        resized = np.where(outside, x.dtype.type(call.attrs["extrapolation_value"]), resized)
    return from_nchw(resized, call)


RESIZE_OPS: dict[str, Operator] = {"relax.image.resize2d": resize2d}
