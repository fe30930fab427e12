"""Means over windows, and over one or both spatial axes: integer sums times the inverse count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.accumulator import Accumulator, Quantized, Term
from tvmquant.passes.region_kind import Form, RegionKind, Value
from tvmquant.passes.region_operators import is_window_mean
from tvmquant.passes.scale_factors import compressed, varying_axes

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder


class WindowMeanRegion(RegionKind):
    """An accumulator, begun by an average."""

    operators = frozenset({"relax.mean", "relax.nn.avg_pool2d"})

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return an accumulator."""
        if not is_window_mean(call):
            return None
        finder.request(call.args[0], qop.ACTIVATION)
        return Form("accumulator")

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Return the sum of each window over the number of its values."""
        x = values[0]
        if not isinstance(x, Quantized) or not is_window_mean(call):
            return None
        if x.factors is not None and varying_axes(x.factors) != [1]:
            x = integerizer.with_one_scale(x, call)
        height, width = (_static(v, call) for v in call.args[0].ty.shape.values[2:])
        if qop.is_call(call, "relax.mean"):
            axes = {int(a) % 4 for a in call.attrs.axis}
            size = [height if 2 in axes else 1, width if 3 in axes else 1]
            window = {"pool_size": size, "strides": [1, 1], "padding": [0, 0, 0, 0],
                      "dilation": [1, 1]}  # fmt: skip
            counts = np.full((1, 1, 1, 1), np.prod(size), np.float64)
        else:
            window, counts = _pool_window(call, height, width)
        attrs = window | {"layout": "NCHW", "input_zero_point": x.zero_point,
                          "out_dtype": "int32", "id": span_name(call)}  # fmt: skip
        expr = integerizer.emit(qop.emit(qop.POOL_SUM, [x.expr], attrs, call.span))
        bound = int(np.prod(window["pool_size"])) * x.bound
        term = Term(x.scales / counts, np.full((1, 1, 1, 1), bound), expr=expr)
        return Accumulator((term,), np.zeros((1, 1, 1, 1)))


def _static(extent: Any, call: relax.Call) -> int:
    try:
        return int(extent)
    except TypeError:
        raise QuantizationError(
            f"node {span_name(call)!r}: pooling over an extent that is not known; "
            "bind the model's input shape"
        ) from None


def _pool_window(call: relax.Call, height: int, width: int) -> tuple[dict[str, Any], Any]:
    """Return the window attributes and how many values each window averages over."""
    a = call.attrs
    pool, strides, dilation = ([int(v) for v in getattr(a, k)]
                               for k in ("pool_size", "strides", "dilation"))  # fmt: skip
    top, left, bottom, right = (int(v) for v in a.padding)
    out = [int(v) for v in call.ty.shape.values[2:]]
    counts, ends = [], []
    for axis, (extent, begin, end) in enumerate(((height, top, bottom), (width, left, right))):
        first, last = (-begin, extent + end) if bool(a.count_include_pad) else (0, extent)
        starts = np.arange(out[axis]) * strides[axis] - begin
        taps = starts[:, None] + np.arange(pool[axis])[None] * dilation[axis]
        counts.append(((taps >= first) & (taps < last)).sum(axis=1))
        reach = int(taps.max()) + 1 - extent  # ceil_mode reaches past the given padding
        ends.append(max(end, reach))
    window = {"pool_size": pool, "strides": strides, "dilation": dilation,
              "padding": [top, left, ends[0], ends[1]]}  # fmt: skip
    area = np.maximum(np.outer(counts[0], counts[1]), 1).astype(np.float64)
    return window, compressed(area[None, None])
