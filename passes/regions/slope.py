"""PRelu and leaky ReLU: a slope for negative sums, in the rounding of the layer that sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.accumulator import Accumulator, Quantized
from tvmquant.passes.region_kind import Form, RegionKind, Value
from tvmquant.passes.region_operators import along, has_usable_slopes, slopes_of
from tvmquant.passes.regions.requantization import as_accumulator

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder

PRELU, LEAKY_RELU = "relax.nn.prelu", "relax.nn.leakyrelu"


class SlopeRegion(RegionKind):
    """Two slopes of a region whose sign is that of one sum of integers."""

    operators = frozenset({PRELU, LEAKY_RELU})

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Give them to a layer's sum; a PRelu gives them to any tensor, a leaky ReLU is a table."""
        if not has_usable_slopes(call):
            return None
        operand = call.args[0]
        form = finder.form(operand)
        layer = form.kind == "accumulator" and form.axis is not None and not form.residual
        along_layer = qop.is_call(call, LEAKY_RELU) or form.axis == int(call.attrs.axis)
        if layer and along_layer and finder.absorbs(operand):
            return replace(form, kind="sloped")
        if qop.is_call(call, LEAKY_RELU):
            return None
        finder.request(operand, qop.ACTIVATION)
        return Form("sloped")

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Return the region with its slopes."""
        x = values[0]
        sloped = isinstance(x, Accumulator) or (
            isinstance(x, Quantized) and qop.is_call(call, PRELU)
        )
        if not sloped or not has_usable_slopes(call):
            return None
        rank = len(call.ty.shape.values)
        axis = int(getattr(call.attrs, "axis", 1)) % rank
        slopes = along(slopes_of(call).astype(np.float64), axis, rank)
        return replace(as_accumulator(x), slopes=slopes)
