"""Zero points of weights: what a layer's window sums to, times them, is taken off its sums.

``sum_k x_k (w_k - z) = sum_k x_k w_k - z sum_k x_k``. Most weights that come with a model need none
of this: their integers minus their zero point fit 8 bits. Of the others (of one scale and zero
point in ``uint8``) the second sum is a convolution with ones, of one output channel, computed once
for all channels; it is a second term of the layer's rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvmquant.arithmetic import INT32_MAX
from tvmquant.formats import INT8
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.accumulator import Accumulator, Contraction, QuantizedWeight, Term
from tvmquant.passes.region_operators import along, output_axis
from tvmquant.passes.regions.contraction import dot_span, emitted_sums

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer


def without_zero_points(integerizer: Integerizer, region: Accumulator) -> Accumulator:
    """Return a region whose layer's weight has zero point 0, with what makes up for it."""
    first, *others = region.terms
    layer = first.contraction
    if layer is None or not has_zero_points(layer.weight):
        return region
    name = span_name(layer.call)
    if others or region.slopes is not None:
        return replace(region, terms=(exact_sums(integerizer, layer, first.scale, name), *others))
    layer, zero = _plain(layer)
    axis, rank = output_axis(layer.call), region.bias.ndim
    sums = _window_sums(integerizer, layer, name)
    correction = replace(sums, scale=-first.scale * along(zero, axis, rank))
    return replace(region, terms=(replace(first, contraction=layer), correction))


def has_zero_points(weight: QuantizedWeight) -> bool:
    """Whether a weight has zero points other than 0."""
    return weight.zero_point is not None and bool(weight.zero_point.any())


def _plain(layer: Contraction) -> tuple[Contraction, Any]:
    """Return a layer with the stored integers as its weight, and the zero points of these."""
    weight = layer.weight
    zero = np.asarray(weight.zero_point).astype(np.int64)
    plain = replace(weight, zero_point=np.zeros_like(zero), values=_stored(weight))
    return replace(layer, weight=plain), zero


def _stored(weight: QuantizedWeight) -> Any:
    """Return the values that the levels of a weight stand for without its zero point."""
    extents = (-1,) + (1,) * (weight.values.ndim - 1)
    levels = weight.levels(weight.scale).astype(np.float32)
    return levels * weight.scale.astype(np.float32).reshape(extents)


def _window_sums(integerizer: Integerizer, layer: Contraction, name: str) -> Term:
    expr = emitted_window_sums(integerizer, layer, name)
    rank = len(layer.call.ty.shape.values)
    bound = np.full((1,) * rank, layer.weight.values[0].size * layer.x.bound)
    return Term(np.ones((1,) * rank), bound, expr=expr)


def emitted_window_sums(integerizer: Integerizer, layer: Contraction, name: str) -> relax.Expr:
    """Emit the sums of the layer's windows, for each group of channels if there are several."""
    outputs, *rest = layer.weight.values.shape
    groups = int(getattr(layer.call.attrs, "groups", 1))
    ones = np.ones((1 if groups == 1 else outputs, *rest), np.float32)
    weight = QuantizedWeight(ones, np.ones(len(ones)), INT8)
    summing = replace(layer, weight=weight)
    return emitted_sums(integerizer, summing, f"{name}.window_sums")


def exact_sums(integerizer: Integerizer, layer: Contraction, scale: Any, name: str) -> Term:
    """Emit a layer's sums less those of its windows, exactly: other terms follow.

    Parameters
    ----------
    integerizer : Integerizer
    layer : Contraction
        Whose weight has zero points.
    scale : float64 array
        Of the term.
    name : str
        From which the ids of what is emitted are derived.
    """
    layer, zero = _plain(layer)
    sums = _window_sums(integerizer, layer, name)
    axis = output_axis(layer.call)
    expr = emitted_sums(integerizer, layer, name)
    one = np.full(1, 2, np.int64)
    attrs = {
        "acc_zero_point": 0, "residual_zero_point": 0, "output_zero_point": 0, "qmin": -INT32_MAX,
        "qmax": INT32_MAX, "axis": axis, "compute_dtype": "int64", "out_dtype": "int32",
        "id": f"{name}.sums",
    }  # fmt: skip
    args = [
        expr, qop.constant(one), qop.constant(np.ones(1, np.int64)),
        qop.constant(np.zeros(1, np.int64)), sums.expr, qop.constant(-2 * zero),
    ]  # fmt: skip
    joined = integerizer.emit(qop.emit(qop.REQUANTIZE, args, attrs, layer.call.span))
    low, high = dot_span(layer.weight.round(layer.weight.scale), layer.x)
    rank = len(layer.call.ty.shape.values)
    bound = along(np.maximum(np.abs(low), np.abs(high)), axis, rank)
    bound = bound + np.abs(along(zero, axis, rank)) * sums.bound
    return Term(scale, bound, expr=joined)
