"""Batch normalization that is not folded: a scale and a shift for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.accumulator import Accumulator, Quantized
from tvmquant.passes.fold_batch_norm import BATCH_NORM, normalization_of
from tvmquant.passes.region_kind import Form, RegionKind, Value
from tvmquant.passes.region_operators import along
from tvmquant.passes.regions.requantization import as_accumulator

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder


class BatchNormRegion(RegionKind):
    """Constants that an accumulator takes in, or that begin one.

    The call gives a tuple, whose first field is the region.
    """

    operators = frozenset({BATCH_NORM})
    takes_wide = True

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return the accumulator, or begin one."""
        if normalization_of(call) is None:
            return None
        operand, axis = call.args[0], int(call.attrs.axis)
        form = finder.form(operand)
        along_layer = form.axis in (None, axis)
        if form.kind == "accumulator" and along_layer and finder.absorbs(operand):
            return form
        finder.request(operand, qop.ACTIVATION)
        return Form("accumulator")

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Take scale and shift into a region."""
        parameters = normalization_of(call)
        if parameters is None or not isinstance(values[0], Accumulator | Quantized):
            return None
        rank, axis = len(call.args[0].ty.shape.values), int(call.attrs.axis)
        scale, shift = (along(values, axis, rank) for values in parameters)
        return as_accumulator(values[0]).scaled(scale).shifted(shift)
