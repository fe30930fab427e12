"""How a layer's weight is rounded, what that costs, and how its bias makes up for its mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.arithmetic import FloatArray
from tvmquant.formats import INT8
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.accumulator import Contraction, QuantizedWeight
from tvmquant.passes.channel_affine import CONV2D_TRANSPOSE, MATMUL
from tvmquant.weight_pairs import bounded_scale, outputs_first

# How much of a layer's rounding error bounding pairs may make: more than this many times as much is
# more than 1.5 dB. Of SqueezeNet's, ResNet-20's and YOLOv8n's layers 1 of 26, 3 of 20 and 4 of 63
# do.
MOST_BOUNDING_NOISE = 1.4
# The same of scales that make multipliers exact: 1 dB. Of weights that lie anywhere it is a tenth.
MOST_SNAPPING_NOISE = 1.26


def weight_of(call: relax.Call, attrs: Mapping[str, Any]) -> QuantizedWeight:
    """Return the weight of a fake_quant, output channels first; without a scale, that is 0."""
    axis, groups = attrs["axis"], attrs["groups"]
    values = qop.constant_array(call.args[0])

    def per_output(array: Any) -> Any:
        if array.ndim > 1:
            array = outputs_first(array, axis, groups).reshape(values.shape[1] * groups, -1)[:, 0]
        elif axis == 1 and values.ndim > 2:
            array = np.tile(np.broadcast_to(array, (values.shape[1],)), groups)
        return np.broadcast_to(array, (len(outputs),))

    outputs = outputs_first(values, axis, groups)
    scale = per_output(qop.constant_array(call.args[1]).astype(np.float64))
    zero_point = per_output(qop.constant_array(call.args[2])) if attrs.get("fixed") else None
    held, multiplier = formats.parse(attrs["format"]), None
    if len(call.args) > 3:
        multiplier = outputs_first(qop.constant_array(call.args[3]), axis, groups)
    return QuantizedWeight(
        outputs, scale, held, bool(attrs.get("bounded", 0)), zero_point, multiplier,
    )  # fmt: skip


def float32(scale: FloatArray) -> FloatArray:
    """Round scales to what a fake_quant stores, away from zero."""
    stored = scale.astype(np.float32)
    return np.where(stored < scale, np.nextafter(stored, np.float32(np.inf)), stored).astype(
        np.float64
    )


def with_bounded_pairs(
    layer: Contraction, input_powers: Mapping[str, Sequence[float]]
) -> QuantizedWeight:
    """Bound pairs of weights, unless what that adds to the layer's error outweighs the rest.

    Pairs whose products with the layer's input fit 16 bits anyway need no bound. Dense layers of
    one row stay free: they are a small part of a network's time, but often its end,
    where nothing averages errors out.

    Parameters
    ----------
    layer : Contraction
    input_powers : mapping of str to sequence of float
        Mean square of each input channel, by layer.
    """
    weight = layer.weight
    depthwise = weight.values.ndim == 4 and weight.values.shape[1] == 1
    fits = 2 * weight.format.qmax * layer.x.qmax < 2**15
    if weight.format != INT8 or fits or depthwise or _has_one_position(layer.call):
        return weight
    scale = bounded_scale(weight.seen, weight.scale)
    if scale is None:
        return weight
    bounded = replace(weight, scale=float32(scale), bounded=True)
    powers = input_powers.get(span_name(layer.call))
    if powers is None:
        return bounded
    free, bound = (_rounding_noise(layer, w, np.asarray(powers)) for w in (weight, bounded))
    return bounded if bound <= MOST_BOUNDING_NOISE * free else weight


def _has_one_position(layer: relax.Call) -> bool:
    """Whether a layer multiplies its weight by one vector of an item."""
    extents = list(layer.ty.shape.values)[1:-1] if qop.is_call(layer, MATMUL) else [0]
    return all(isinstance(n, tvm.tirx.IntImm) and int(n) == 1 for n in extents)


def snapping_costs_little(
    layer: Contraction,
    scale: FloatArray,
    snapped: FloatArray,
    input_powers: Mapping[str, Sequence[float]],
) -> bool:
    """Whether another scale, a little larger, adds little to the layer's rounding error.

    It does but where weights lie on a grid, as those of networks that were trained quantized.

    Parameters
    ----------
    layer : Contraction
    scale, snapped : float64 arrays of shape (O,)
    input_powers : mapping of str to sequence of float
        Mean square of each input channel, by layer.
    """
    powers = input_powers.get(span_name(layer.call))
    if powers is None:
        return True
    before, after = (
        _rounding_noise(layer, replace(layer.weight, scale=s), np.asarray(powers))
        for s in (scale, snapped)
    )
    return after <= MOST_SNAPPING_NOISE * before


def mean_error(
    layer: Contraction, integers: Any, scale: Any, input_means: Mapping[str, Sequence[float]]
) -> Any:
    """Return what rounding the weight adds to the mean of each output channel; 0.0 if not known.

    Parameters
    ----------
    layer : Contraction
    integers : int array of shape (O, ...)
    scale : float64 array of shape (O,)
    input_means : mapping of str to sequence of float
        Mean of each input channel, by layer.
    """
    means = input_means.get(span_name(layer.call))
    # of a transposed convolution the taps that meet an output depend on its position
    if means is None or qop.is_call(layer.call, CONV2D_TRANSPOSE):
        return 0.0
    values = layer.weight.seen
    error = integers * scale.reshape((-1,) + (1,) * (values.ndim - 1)) - values
    taps = error.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = len(means) // taps.shape[1]
    by_group = np.asarray(means).reshape(groups, taps.shape[1])
    if layer.x.factors is not None:  # of the integers, which the weight multiplies
        by_group = by_group / layer.x.factors.reshape(groups, taps.shape[1])
    outputs = taps.reshape(groups, -1, taps.shape[1])
    return np.einsum("goi,gi->go", outputs, by_group).reshape(-1)


def _rounding_noise(layer: Contraction, weight: QuantizedWeight, powers: FloatArray) -> float:
    """Return the mean square that rounding input and weight adds to a layer's outputs."""
    inputs, groups = weight.values.shape[1], len(powers) // weight.values.shape[1]
    factors = np.ones(len(powers)) if layer.x.factors is None else layer.x.factors.reshape(-1)
    unit = weight.scale.reshape((-1,) + (1,) * (weight.values.ndim - 1))
    error = np.square(weight.round(weight.scale) * unit - weight.seen)
    energy = np.square(weight.seen)

    def by_input(values: FloatArray) -> FloatArray:
        taps = math.prod(values.shape[2:])
        summed: FloatArray = values.reshape(groups, -1, inputs, taps).sum(axis=(1, 3))
        return summed.reshape(-1)

    step = np.square(layer.x.scale) / 12.0
    return float((by_input(energy) * step + by_input(error) * powers / np.square(factors)).sum())
