"""Operators that move integers, pick the greatest of them, or average neighbours once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tvmquant.errors import ModelError, QuantizationError
from tvmquant.formats import INT16, MOST_BITS, UINT8, Binary
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name, used_vars
from tvmquant.passes import scale_factors
from tvmquant.passes.accumulator import Quantized
from tvmquant.passes.region_kind import Form, Open, RegionKind, Value
from tvmquant.passes.region_operators import (
    MOVERS,
    REDUCED_EXTREMES,
    RESHAPES,
    UNDECIDED,
    is_mover,
)

# In steps: scales are stored in float32.
MOST_PAD_ERROR = 2.0**-16

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder


class MoverRegion(RegionKind):
    """Keeps the scales of what it reads."""

    operators = MOVERS - set(REDUCED_EXTREMES)
    takes_wide = True

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return a mover of tensors that are, or will be, held; inputs of a concat are grouped.

        Raises
        ------
        ModelError
            If it pads with what is no number; names the node.
        """
        operands = used_vars(call)
        if not is_mover(call) or not operands or len(operands) != len(_tensor_fields(call)):
            return None  # a constant among the inputs of a concat
        if all(finder.form(v).kind == "float" for v in operands):
            return None
        value = float(getattr(call.attrs, "pad_value", 0.0))
        if not math.isfinite(value):
            raise ModelError(
                f"node {span_name(call)!r} pads a tensor that is quantized with {value}; expected "
                "a finite number"
            )
        if not all(finder.is_float(v) for v in operands):
            role = UNDECIDED if qop.is_call(call, *RESHAPES) else qop.ACTIVATION
            for operand in operands:
                held = finder.form(operand).kind in ("quantized", "mover")
                if finder.is_float(operand) or not held:
                    finder.request(operand, role)
        if len(operands) > 1:
            finder.unify([r for v in operands for r in finder.roots(v)])
        return Form("mover", tuple(operands))

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Return the tensor with the scales that moved with it."""
        if not is_mover(call):
            return None
        joined = tuple(v for v in values if isinstance(v, Quantized))
        if var in integerizer.rounded and qop.is_call(call, "relax.concat"):
            fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else []
            if len(joined) == len(fields) and any(v.imported for v in joined):
                return Joined(call, joined)
        return moved(integerizer, call, values)


@dataclass(frozen=True)
class Joined(Open):
    """A concat of tensors whose scales came with the model, which are rounded to that of its end.

    Each is rounded by itself, so that none is rounded twice.
    """

    call: relax.Call
    operands: tuple[Quantized, ...]

    def rounded(
        self, integerizer: Integerizer, to: Quantized, name: str, call: relax.Call
    ) -> Quantized:
        """Join integers of one scale."""
        one_scale = replace(to, factors=None)
        operands = [integerizer.rescaled(v, one_scale, name, call) for v in self.operands]
        joined = relax.op.concat([v.expr for v in operands], int(self.call.attrs.axis))
        qmin, qmax = min(v.qmin for v in operands), max(v.qmax for v in operands)
        found = replace(one_scale, expr=integerizer.emit(joined), qmin=qmin, qmax=qmax)
        return integerizer.rescaled(found, to, name, call)


def moved(integerizer: Integerizer, call: relax.Call, values: Sequence[Value]) -> Quantized | None:
    """Emit a mover of integers, and return what it gives."""
    inputs = [v for v in values if isinstance(v, Quantized)]
    source = call.args[0]
    constants = isinstance(source, relax.Tuple) and len(source.fields) > len(values)
    if constants or len(inputs) < len(values):
        return None
    if isinstance(source, relax.Tuple):
        unified = _unified(integerizer, inputs, call)
        if unified is None:
            return None
        inputs = unified
    scales = scale_factors.moved(call, [v.scales for v in inputs])
    if scales is None and any(v.imported for v in inputs):
        return None  # one scale would round them, where the model does not
    if scales is None:
        inputs = [integerizer.with_one_scale(v, call) for v in inputs]
        scales = scale_factors.one_factor(call, inputs[0].scales)
    if isinstance(source, relax.Tuple):
        new = relax.op.concat([v.expr for v in inputs], int(call.attrs.axis))
    elif qop.is_call(call, "relax.nn.pad"):
        new, inputs = _padded(inputs[0], call)
    else:
        new = relax.Call(
            call.op, [inputs[0].expr, *call.args[1:]], call.attrs, call.ty_args, call.span
        )
    return Quantized.of(
        integerizer.emit(new),
        scales,
        inputs[0].zero_point,
        min(v.qmin for v in inputs),
        max(v.qmax for v in inputs),
        max((v.format for v in inputs), key=lambda held: held.bits),
        imported=all(v.imported for v in inputs),
    )


def _unified(
    integerizer: Integerizer, inputs: list[Quantized], call: relax.Call
) -> list[Quantized] | None:
    """Bring the inputs of a concat to one zero point and type, where these differ.

    They then have the scale of the one with the widest range. What came with a model is not rounded
    where the model does not: it is held in 16 bits without zero points, each in its own scale, as
    what was joined so before is; None of other tensors of more than 8 bits.
    """
    if len({(v.zero_point, v.dtype) for v in inputs}) == 1:
        return inputs
    if any(v.imported for v in inputs):
        if any(v.format.bits > MOST_BITS and (v.format != INT16 or v.zero_point) for v in inputs):
            return None
        return [
            v if v.format == INT16 else _without_zero_point(integerizer, v, call) for v in inputs
        ]
    widest = replace(max(inputs, key=lambda v: v.scale), factors=None)
    return [integerizer.rescaled(v, widest, span_name(call), call) for v in inputs]


def _without_zero_point(integerizer: Integerizer, x: Quantized, call: relax.Call) -> Quantized:
    """Return a tensor of 8 bits in 16, exactly."""
    least, most = x.qmin - x.zero_point, x.qmax - x.zero_point
    to = replace(x, zero_point=0, qmin=least, qmax=most, format=INT16, imported=True)
    return integerizer.rescaled(x, to, span_name(call), call)


def _padded(x: Quantized, call: relax.Call) -> tuple[relax.Expr, list[Quantized]]:
    """Return the call, and tensors that hold the integers of its result between them.

    Raises
    ------
    QuantizationError
        If signs are padded with what is no whole number of their magnitude; names the node.
    """
    value = float(getattr(call.attrs, "pad_value", 0.0))
    widths, mode = [int(v) for v in call.attrs.pad_width], str(call.attrs.pad_mode)
    steps = value / x.scale + x.zero_point
    if isinstance(x.format, Binary) and mode == "constant" and steps not in (x.qmin, x.qmax):
        if abs(steps - np.rint(steps)) > MOST_PAD_ERROR or not 0 <= steps <= UINT8.qmax:
            raise QuantizationError(
                f"node {span_name(call)!r} pads a tensor of two values with {value:g}; expected a "
                f"whole number of steps of {x.scale:g}, such as 0 or one of the values"
            )
        x = replace(x, format=UINT8)  # such as true zeros
    steps = int(x.format.round(np.asarray(steps)))
    padded = relax.op.nn.pad(x.expr, widths, pad_mode=mode, pad_value=float(steps))
    return padded, [x, replace(x, qmin=steps, qmax=steps)] if mode == "constant" else [x]


def _tensor_fields(call: relax.Call) -> list[relax.Expr]:
    first = call.args[0]
    return list(first.fields) if isinstance(first, relax.Tuple) else [first]
