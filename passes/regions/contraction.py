"""Convolutions and dense layers: sums of products with a weight, and what is added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import INT32_MAX, Array, dot_bounds
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.formats import MOST_BITS, Binary
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.accumulator import (
    Accumulator,
    Contraction,
    Quantized,
    QuantizedWeight,
    Term,
    factors_per_input,
)
from tvmquant.passes.multipliers import Multipliers, choose_multipliers
from tvmquant.passes.region_kind import Form, RegionKind, Value
from tvmquant.passes.region_operators import along, input_axis, output_axis
from tvmquant.passes.regions.requantization import by_sign, reach_of
from tvmquant.passes.regions.signs import sign_multipliers
from tvmquant.passes.scale_factors import varying_axes

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder

# stands for the step of a channel that is multiplied by 0
LEAST_STEP = 1e-300
# of a bias that is added to the sums
MOST_STEPS = 2.0**30


class ContractionRegion(RegionKind):
    """An accumulator, begun by a layer with a constant weight."""

    operators = frozenset(qop.FLOAT_CONTRACTIONS)
    takes_wide = True

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return an accumulator whose constants vary along the output channels."""
        weight = call.args[1]
        imported = finder.imported_weights.get(weight)
        constant = isinstance(weight, tvm.ir.GenericConst)
        quantizes = finder.calibrates or finder.dynamic.chosen
        if imported is None and not (constant and quantizes):
            return None
        if qop.is_call(call, "relax.matmul") and len(weight.ty.shape.values) != 2:
            return None
        wide = finder.is_wide(call.args[0])
        if wide and imported is None:
            return None
        finder.request(call.args[0], qop.ACTIVATION)
        # its two bytes are two terms
        return Form("accumulator", residual=wide, axis=output_axis(call))

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Return the sum of products, which is emitted where its region ends."""
        x, weight = (integerizer.value(a) for a in call.args[:2])
        if not isinstance(x, Quantized) or not isinstance(weight, QuantizedWeight):
            return None
        # a border holds the zero point, which what a table or a clip gives need not reach
        x = replace(x, qmin=min(x.qmin, x.zero_point), qmax=max(x.qmax, x.zero_point))
        axis, rank = input_axis(call), len(call.ty.shape.values)
        if x.factors is not None and varying_axes(x.factors) != [axis]:
            x = integerizer.with_one_scale(x, call)
        if x.factors is not None:
            groups = int(getattr(call.attrs, "groups", 1))
            factors = factors_per_input(x.factors.reshape(-1), groups, weight.values.shape)
            if weight.zero_point is None:
                weight = replace(weight, factors=factors)
            elif weight.values.shape[1] > 1:
                return None  # the model's integers cannot take the factors in
            else:
                weight, x = _with_factor(weight, factors), replace(x, factors=None)
        if x.format.bits > MOST_BITS:
            terms = integerizer.sums_of_bytes(Contraction(call, x, weight))
            return Accumulator(terms, np.zeros((1,) * rank))
        layer = integerizer.scaled(Contraction(call, x, weight))
        scale = along(x.scale * layer.weight.scale, output_axis(call), rank)
        term = Term(scale, np.zeros_like(scale), contraction=layer)
        return Accumulator((term,), np.zeros((1,) * rank))


def _with_factor(weight: QuantizedWeight, factors: Array) -> QuantizedWeight:
    """Return a weight with one input channel for each output, whose scale takes a factor in."""
    whole = np.broadcast_to(factors, (len(weight.values),) + (1,) * (weight.values.ndim - 1))
    values = (weight.values * whole).astype(np.float32)
    return replace(weight, values=values, scale=weight.scale * whole.reshape(-1))


def rounded_layer(
    integerizer: Integerizer, layer: Contraction, region: Accumulator, to: Quantized, name: str
) -> tuple[relax.Expr, Multipliers, Any]:
    """Round weight and bias, emit the contraction, and return how its sums are requantized.

    All arrays have shape (1,) or (O,) here: nothing beside a contraction varies otherwise.

    Returns
    -------
    (relax.Expr, Multipliers, int64 array)
        The accumulator, and multipliers, shift and offset of equation (3).

    Raises
    ------
    QuantizationError
        If the accumulator may leave 32 bits; names the layer.
    """
    x, weight = layer.x, layer.weight
    integers = weight.round(weight.scale)
    if isinstance(to.format, Binary):
        flat = region.flattened()
        chosen, offset = sign_multipliers(
            flat, name, strict=to.strict, middle=to.middle, span=dot_span(integers, x)
        )
        return emitted_sums(integerizer, layer, name), chosen, offset
    step, *others = (t.scale.reshape(-1) for t in region.terms)
    to_scale, bias = to.scales.reshape(-1), region.bias.reshape(-1)
    steps = np.zeros(len(integers), np.int64)
    slopes = None if region.slopes is None else region.slopes.reshape(-1)
    if slopes is not None:  # of the sum with its bias: the sign decides
        whole = np.rint(bias / np.where(step == 0.0, LEAST_STEP, step))
        # of steps so small that 32 bits do not hold the bias it is the bias's sign
        decided = np.abs(whole) > MOST_STEPS
        steps = np.where(decided, 0.0, whole).astype(np.int64)
        step = np.where(decided, 0.0, step)
        bias = np.where(decided, np.where(bias < 0.0, bias * slopes, bias), 0.0)
        bias = bias + region.offset.reshape(-1)
    span = tuple(end + steps for end in dot_span(integers, x))
    bound = np.maximum(*np.abs(span))
    chosen = choose_multipliers(
        [step / to_scale, *(s / to_scale for s in others)],
        [bound, *(t.bound.reshape(-1) for t in region.terms[1:])],
        to.zero_point, bias / to_scale, name=name, span=span, slopes=slopes,
        reach=reach_of(slopes, to), levels=to.levels, imported=to.imported,
    )  # fmt: skip
    offset = np.rint(np.ldexp(bias / to_scale, chosen.shift)).astype(np.int64)
    return emitted_sums(integerizer, layer, name, steps), by_sign(chosen, slopes), offset


def emitted_sums(
    integerizer: Integerizer, layer: Contraction, name: str, steps: Any = 0
) -> relax.Expr:
    """Emit the sums of a layer, in 32 bits.

    Parameters
    ----------
    integerizer : Integerizer
    layer : Contraction
    name : str
        Id of the operator.
    steps : int64 array of shape (O,), or 0
        Part of the bias that is added to the sums.

    Raises
    ------
    QuantizationError
        If they may leave 32 bits; names the layer.
    """
    x, weight = layer.x, layer.weight
    integers = weight.round(weight.scale)
    axes = tuple(range(1, integers.ndim))
    folded = steps - x.zero_point * integers.astype(np.int64).sum(axis=axes)
    _check_accumulator(layer, integers, folded, steps, name)
    multiplier = weight.group_multiplier
    grouped = [] if multiplier is None else [qop.constant(multiplier)]
    levels = qop.constant(weight.levels(weight.scale))
    args = [x.expr, levels, qop.constant(folded.astype(np.int32)), *grouped]
    operator = qop.FLOAT_CONTRACTIONS[layer.call.op.name]
    attrs = _attributes(layer, name)
    return integerizer.emit(qop.emit(operator, args, attrs, layer.call.span), "acc")


def dot_span(integers: Any, x: Quantized) -> tuple[Any, Any]:
    """Return the least and the greatest sum of products of each output channel."""
    return dot_bounds(integers, x.qmin - x.zero_point, x.qmax - x.zero_point)


def _check_accumulator(
    layer: Contraction, integers: Any, folded: Any, steps: Any, name: str
) -> None:
    """Raise where an accumulator of integers as they are stored may leave 32 bits."""
    x = layer.x
    low, high = dot_bounds(integers, min(0, x.qmin), x.qmax)
    if max(np.abs(low).max(), np.abs(high).max()) + np.abs(folded).max() > INT32_MAX:
        raise QuantizationError(
            f"layer {name!r}: its accumulator may leave 32 bits ({integers[0].size} products "
            f"of {layer.weight.format} weights and {x.dtype} activations, and a bias of up to "
            f"{np.abs(steps).max()} steps); split the layer, or enlarge a fixed weight scale"
        )


def _attributes(layer: Contraction, name: str) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "input_zero_point": layer.x.zero_point,
        "out_dtype": "int32",
        "id": name,
        "choice": str(BitChoice(layer.weight.format, layer.x.format)),
        "grouped": int(layer.weight.format.group > 0),
        "bounded": int(layer.weight.bounded),
        "input_qmin": layer.x.qmin,
        "input_qmax": layer.x.qmax,
        "epilogue": 0,
    }
    if layer.dynamic:
        attrs["dynamic"] = 1
    source = layer.call.attrs
    if layer.call.op.name == "relax.matmul":
        return attrs
    attrs |= {key: [int(v) for v in getattr(source, key)]
              for key in ("strides", "padding", "dilation")}  # fmt: skip
    if layer.dynamic and layer.call.op.name == "relax.nn.conv2d":
        attrs["padding"] = [0, 0, 0, 0]
    if layer.call.op.name == "relax.nn.conv2d_transpose":
        attrs["output_padding"] = [int(v) for v in source.output_padding]
    return attrs | {"groups": int(source.groups), "layout": "NCHW"}
