"""How an accumulator ends: equation (3) of `tvmquant.arithmetic`, with multipliers in integers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvmquant.errors import QuantizationError
from tvmquant.formats import INT32, Binary
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.accumulator import Accumulator, Quantized, Term
from tvmquant.passes.multipliers import Multipliers, choose_multipliers, has_ties
from tvmquant.passes.region_operators import output_axis
from tvmquant.passes.regions.signs import by_direction, sign_multipliers
from tvmquant.passes.scale_factors import compressed, varying_axes

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer

# Tensors that one rounding of a kernel adds.
MOST_TERMS = 2


def requantized(
    integerizer: Integerizer, region: Accumulator, to: Quantized, name: str, call: relax.Call
) -> Quantized:
    """Round a region, and emit that.

    Raises
    ------
    QuantizationError
        If it has more terms than a kernel's epilogue; names the node.
    """
    region = integerizer.without_zero_points(region)
    first, others = region.terms[0], region.terms[1:]
    if len(region.terms) > MOST_TERMS:
        raise QuantizationError(
            f"node {name!r} adds {len(region.terms)} tensors in one rounding; at most {MOST_TERMS} "
            "fit a kernel: annotate the graph with AnnotateQuantization, which keeps the others"
        )
    signs = isinstance(to.format, Binary)
    sides = by_direction(region, to.middle, strict=to.strict) if signs else None
    if sides is not None:
        exprs = [requantized(integerizer, side, to, name, call).expr for side in sides]
        return replace(to, expr=integerizer.emit(relax.op.maximum(*exprs), "y_q"))
    if first.contraction is not None:
        axis = output_axis(first.contraction.call)
        name = span_name(first.contraction.call) or name
        expr, chosen, offset = integerizer.finish(first.contraction, region, to, name)
    else:
        expr = first.expr
        chosen, offset = _multipliers(region, to, name)
        axis, (chosen, offset) = _by_channel(chosen, offset)
    attrs: dict[str, Any] = {
        "acc_zero_point": first.zero_point,
        "residual_zero_point": others[0].zero_point if others else 0,
        "output_zero_point": to.qmin + 1 if signs else to.zero_point,
        "qmin": to.qmin if signs else int(_clip_bound(region.low, to).min()),
        "qmax": to.qmax if signs else int(_clip_bound(region.high, to).max()),
        "axis": axis,
        "compute_dtype": chosen.compute_dtype,
        "out_dtype": to.dtype,
        "id": name,
    }
    # sums of 32 bits are whole, or of steps so small that ties do not matter
    rounds = not signs and to.format != INT32
    if to.imported and rounds and has_ties(chosen):
        attrs["ties_to_even"] = 1
    args = [expr, *(_integers(a, chosen.compute_dtype) for a in
                    (chosen.values[0], chosen.shift, offset))]  # fmt: skip
    if region.slopes is not None and not signs:
        attrs["slopes"] = 1
        args.append(_integers(chosen.values[1], chosen.compute_dtype))
    if others:
        args += [others[0].expr, _integers(chosen.values[1], chosen.compute_dtype)]
    out = integerizer.emit(qop.emit(qop.REQUANTIZE, args, attrs, call.span), "y_q")
    return replace(to, expr=out, qmin=attrs["qmin"], qmax=attrs["qmax"])


def as_accumulator(value: Any) -> Accumulator:
    """Return a region, or a tensor as one.

    Raises
    ------
    QuantizationError
        If it is a function that only a table computes.
    """
    if isinstance(value, Quantized):
        # kernels fold z * M into the offset, so that q * M itself must stay in range
        reach = max(abs(value.qmin), abs(value.qmax)) + abs(value.zero_point)
        ones = (1,) * value.rank
        term = Term(value.scales, np.full(ones, reach), value.zero_point, value.expr)
        return Accumulator((term,), np.zeros(ones))
    if isinstance(value, Accumulator):
        return value
    raise QuantizationError("a lookup table was not annotated; run AnnotateQuantization first")


def reach_of(slopes: Any, to: Quantized) -> Any:
    """Return how many steps of the output negative sums may take, times their slopes."""
    if slopes is None:
        return 0.0
    return np.where(slopes > 0.0, to.zero_point - to.qmin, to.qmax - to.zero_point)


def by_sign(chosen: Multipliers, slopes: Any) -> Multipliers:
    """Give each sign of the integers the multiplier that is its sum's in real numbers."""
    if slopes is None:
        return chosen
    positive, sloped = chosen.values
    flipped = positive < 0  # a negative sum of integers is a positive number
    values = np.where(flipped, sloped, positive), np.where(flipped, positive, sloped)
    return replace(chosen, values=values)


def _integers(array: Any, dtype: str) -> relax.Expr:
    return qop.constant(np.atleast_1d(array).astype(dtype))


def _clip_bound(real: float, to: Quantized) -> Any:
    """Return the integers that stand for a bound, as an array that broadcasts."""
    with np.errstate(over="ignore"):
        steps = np.rint(np.clip(real / to.scales, -(2.0**31), 2.0**31)) + to.zero_point
    return np.clip(steps, to.qmin, to.qmax)


def _multipliers(region: Accumulator, to: Quantized, name: str) -> tuple[Multipliers, Any]:
    """Return the multipliers and the offset of a region without a contraction."""
    if isinstance(to.format, Binary):
        return sign_multipliers(region, name, strict=to.strict, middle=to.middle)
    scales = to.scales
    ratios = [t.scale / scales for t in region.terms]
    bounds = [t.bound for t in region.terms]
    chosen = choose_multipliers(
        ratios, bounds, to.zero_point, region.offset / scales, name=name, slopes=region.slopes,
        reach=reach_of(region.slopes, to), imported=to.imported,
    )  # fmt: skip
    offset = np.rint(np.ldexp(region.offset / scales, chosen.shift)).astype(np.int64)
    return chosen, offset


def _by_channel(chosen: Multipliers, offset: Any) -> tuple[int, tuple[Multipliers, Any]]:
    """Return the arrays of a requantization as vectors along one axis, where they are such."""
    values = [compressed(v) for v in chosen.values]
    shift, offset = compressed(chosen.shift), compressed(offset)
    rank = shift.ndim
    standard = 1 if rank == 4 else rank - 1
    if all(axis == standard for a in (*values, shift, offset) for axis in varying_axes(a)):
        values = [v.reshape(-1) for v in values]
        shift, offset = shift.reshape(-1), offset.reshape(-1)
    return standard, (replace(chosen, values=tuple(values), shift=shift), offset)
