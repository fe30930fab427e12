"""The greater or lesser of two tensors, and the greatest or least along axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tvm import relax

from tvmquant.ir.rewriter import span_name, used_vars
from tvmquant.passes.accumulator import Quantized
from tvmquant.passes.region_kind import Form, Open, RegionKind, Value
from tvmquant.passes.region_operators import EXTREMES, REDUCED_EXTREMES
from tvmquant.passes.regions.mover import moved

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder


@dataclass(frozen=True)
class Extreme(Open):
    """The greater or lesser of two tensors, once they have the scale that the result gets."""

    call: relax.Call
    operands: tuple[Quantized, ...]

    def rounded(
        self, integerizer: Integerizer, to: Quantized, name: str, call: relax.Call
    ) -> Quantized:
        """Compare integers of one scale."""
        one_scale = replace(to, factors=None)
        compared = self.compared(integerizer, one_scale, name, call)
        return integerizer.rescaled(compared, to, name, call)

    def compared(
        self, integerizer: Integerizer, to: Quantized, name: str, call: relax.Call
    ) -> Quantized:
        """Return the result in a scale."""
        operands = [integerizer.rescaled(v, to, name, call) for v in self.operands]
        of, exprs = self.call, [v.expr for v in operands]
        expr = integerizer.emit(relax.Call(of.op, exprs, of.attrs, of.ty_args, of.span))
        qmin, qmax = min(v.qmin for v in operands), max(v.qmax for v in operands)
        return replace(to, expr=expr, qmin=qmin, qmax=qmax)


class ExtremeRegion(RegionKind):
    """What is made for an extreme only needs the range of its result."""

    operators = frozenset({*EXTREMES, *REDUCED_EXTREMES})

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Take the greatest or least of what is held in as many bits as the result."""
        operands = used_vars(call)
        if all(finder.form(v).kind == "float" for v in operands):
            return None
        moves = all(finder.form(v).kind in ("quantized", "mover") for v in operands)
        of_one = moves and len({root for v in operands for root in finder.roots(v)}) == 1
        return Form("mover" if of_one else "extreme", tuple(operands))

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Compare in the scale of the result, or in the tensors' own where it has none."""
        if len(values) == 1:
            return moved(integerizer, call, values)
        operands = tuple(v for v in values if isinstance(v, Quantized))
        if len(operands) < len(values):
            return None
        extreme = Extreme(call, operands)
        if var in integerizer.rounded:
            return extreme
        widest = replace(max(operands, key=lambda v: v.scale), factors=None)
        return extreme.compared(integerizer, widest, span_name(call), call)
