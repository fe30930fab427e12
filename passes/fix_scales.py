"""Choose the scale of every weight, and take its rounding's mean out of the bias (still L1).

Before::

    w_q = fake_quant(w, scale=[0.]) {calibrated: 0}; lv = conv2d(x_q, w_q); lv1 = add(lv, bias)

After::

    w_q = fake_quant(w, scale=[s]) {calibrated: 1, bounded: 1}
    lv = conv2d(x_q, w_q); lv1 = add(lv, bias')

Requires calibrated activations (`ApplyCalibration`). Afterwards nothing of a network's numbers is
left to choose: `InsertRequantize` only rounds, so that what is trained, analysed or exported here
is the network that ships. Weights that have a scale already (imported or trained) keep it, with
their bias. The others get one per output channel, in this order:

1. of least squared error, or of the largest value; with groups, a multiplier of each group's step.
   A weight that multiplies a tensor whose scales differ is quantized as what multiplies the
   integers, ``w * factors`` (`scale_factors`): its steps are ``scale * multiplier``,
   multiplier = 1 / factors;
2. where pairs are bounded (`tvmquant.weight_pairs`), the best for that, unless bounding outweighs
   the layer's other errors;
3. large enough that the bias has fewer than `MAX_BIAS_STEPS` steps of the accumulator;
4. up to 1/16 larger, so that the multiplier of the layer's requantization is *exactly* dyadic and
   short enough for 32-bit arithmetic, unless that takes weights off a grid on which they lie.

Where the mean of a layer's input is known, the bias is corrected for what rounding (and bounding)
the weight adds to the mean of the output: ``bias -= sum_c E[x_c] (Q(w)_c - w_c)``. Of SqueezeNet
with 4-bit weights per channel that recovers half of what is lost (top-1 of 334 images: float 62.6,
uncorrected 49.1, corrected 56.0), of 8-bit weights what bounding pairs costs.

References: Yao et al., HAWQ-V3, 2021, section 3 (dyadic arithmetic); Nagel et al., Data-Free
Quantization, 2019, section 4.2 (bias correction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.arithmetic import Array, FloatArray
from tvmquant.formats import INT32, Binary
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses
from tvmquant.passes.accumulator import Accumulator, Contraction, Quantized, QuantizedWeight
from tvmquant.passes.insert_requantize import Integerizer
from tvmquant.passes.multipliers import Multipliers, choose_multipliers
from tvmquant.passes.region_operators import along, output_axis
from tvmquant.passes.regions.contraction import dot_span
from tvmquant.passes.regions.requantization import reach_of
from tvmquant.passes.rounded_weights import (
    float32,
    mean_error,
    snapping_costs_little,
    weight_of,
    with_bounded_pairs,
)
from tvmquant.passes.sums import scale_of_sums
from tvmquant.quantizer import binary_weight_scales, grouped_weight_scales, weight_scales
from tvmquant.weight_pairs import outputs_back

# |bias| in accumulator units stays below this, or a channel of near-zero weights would overflow.
MAX_BIAS_STEPS = float(2**23)
# stands for a constant of 0 that a channel is multiplied by
LEAST_GAIN = 1e-30


class _Chooser(Integerizer):
    """Walks the regions as they will be rounded, and notes what their weights need."""

    def __init__(
        self,
        module: tvm.IRModule,
        weight_method: str,
        bound_pairs: bool,
        input_means: Mapping[str, Sequence[float]],
        input_powers: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__(module)
        self.weight_method = weight_method
        self.bound_pairs = bound_pairs
        self.input_means = input_means
        self.input_powers = input_powers
        # by the variable of the weight's fake_quant
        self.chosen: dict[relax.Var, QuantizedWeight] = {}
        self.corrections: dict[relax.Var, FloatArray] = {}
        # of results that are kept as sums: axis and scale, by the id of the fake_quant
        self.sums: dict[str, tuple[int, FloatArray]] = {}

    def weight(self, call: relax.Call, attrs: Mapping[str, Any]) -> QuantizedWeight:
        return weight_of(call, attrs)

    def uncalibrated(self, call: relax.Call, attrs: Mapping[str, Any]) -> Quantized:
        source = self.value(call.args[0])
        if formats.parse(attrs["format"]) != INT32 or not isinstance(source, Accumulator):
            return super().uncalibrated(call, attrs)
        axis, scale = scale_of_sums(source)
        self.sums[attrs["id"]] = axis, scale
        scales = along(scale, axis, len(call.ty.shape.values))
        target = Quantized.of(call.args[0], scales, 0, INT32.qmin, INT32.qmax, INT32)
        return self.ended(call, target, attrs["id"])

    def scaled(self, layer: Contraction) -> Contraction:
        if layer.weight.scale.any():
            return layer
        layer = replace(layer, weight=_with_scale(layer.weight, self.weight_method))
        if self.bound_pairs:
            powers = {} if layer.dynamic else self.input_powers  # whose step is not known
            layer = replace(layer, weight=with_bounded_pairs(layer, powers))
        self.chosen[layer.call.args[1]] = layer.weight
        return layer

    def finish(
        self, layer: Contraction, region: Accumulator, to: Quantized, name: str
    ) -> tuple[relax.Expr, Multipliers, Any]:
        if layer.call.args[1] in self.chosen:
            layer, region = self._fixed(layer, region, to, name)
            self.chosen[layer.call.args[1]] = layer.weight
        return super().finish(layer, region, to, name)

    def _fixed(
        self, layer: Contraction, region: Accumulator, to: Quantized, name: str
    ) -> tuple[Contraction, Accumulator]:
        """Return a layer with its final scale, and its region with a corrected bias.

        All arrays have shape (1,) or (O,) here: nothing beside a contraction varies otherwise.
        """
        x, weight = layer.x, layer.weight
        gain = region.terms[0].scale.reshape(-1) / (x.scale * weight.scale)
        gain = np.where(gain == 0.0, LEAST_GAIN, gain)  # constants multiplied in per channel
        bias, scale, gain = np.broadcast_arrays(region.bias.reshape(-1), weight.scale, gain)
        unit = x.scale * np.abs(gain)
        # what correcting the bias may move it by: the scale, and with it the error, is not final
        reserve = 2.0 * np.abs(
            gain * mean_error(layer, weight.round(scale), scale, self.input_means)
        )
        least = (np.abs(bias) + reserve) / (unit * MAX_BIAS_STEPS)
        # of a channel without weights the step is the bias's alone
        empty = ~weight.values.reshape(len(weight.values), -1).any(axis=1) & (least > 0.0)
        scale = np.where(empty, least, np.maximum(scale, least))
        scale = float32(self._snapped(layer, region, to, name, scale, gain, bias, reserve))
        weight = replace(weight, scale=scale)
        correction = gain * mean_error(layer, weight.round(scale), scale, self.input_means)
        correction = np.clip(correction, -reserve, reserve)
        self.corrections[layer.call.args[1]] = -correction / gain
        axis, rank = output_axis(layer.call), region.bias.ndim
        layer = replace(layer, weight=weight)
        first = replace(
            region.terms[0], scale=along(x.scale * scale * gain, axis, rank), contraction=layer
        )
        terms = (first, *region.terms[1:])
        return layer, replace(region, terms=terms, bias=along(bias - correction, axis, rank))

    def _snapped(
        self, layer: Contraction, region: Accumulator, to: Quantized, name: str,
        scale: FloatArray, gain: FloatArray, bias: FloatArray, reserve: FloatArray,
    ) -> FloatArray:  # fmt: skip
        """Return scales that are a little larger, where these make the multiplier exact."""
        if isinstance(to.format, Binary):  # its thresholds are exact
            return scale
        x, weight = layer.x, layer.weight
        unit, to_scale = x.scale * np.abs(gain), to.scales.reshape(-1)
        others = region.terms[1:]
        ratio = x.scale * scale * gain / to_scale
        # one step more than the sums may have: the scale is stored in float32
        low, high = dot_span(weight.round(scale), x)
        span = low - x.bound, high + x.bound
        slopes = None if region.slopes is None else region.slopes.reshape(-1)
        steps, slack = bias / to_scale, reserve / to_scale
        if slopes is not None:  # the bias is a part of the sum
            inside, kept = np.rint(bias / (unit * np.sign(gain) * scale)), reserve / (unit * scale)
            span = span[0] + inside - np.ceil(kept), span[1] + inside + np.ceil(kept)
            steps, slack = region.offset.reshape(-1) / to_scale, np.zeros(1)
        chosen = choose_multipliers(
            [ratio, *(t.scale.reshape(-1) / to_scale for t in others)],
            [np.maximum(*np.abs(span)), *(t.bound.reshape(-1) for t in others)],
            to.zero_point, steps, name=name, span=span, snap_first=True, slack=slack,
            slopes=slopes, reach=reach_of(slopes, to), levels=to.levels,
        )  # fmt: skip
        if chosen.compute_dtype != "int32":
            return scale
        exact = np.ldexp(np.abs(chosen.values[0]).astype(np.float64), -chosen.shift)
        snapped = np.where(chosen.values[0] == 0, scale, exact * to_scale / unit)
        return snapped if snapping_costs_little(layer, scale, snapped, self.input_powers) else scale


def _with_scale(weight: QuantizedWeight, method: str) -> QuantizedWeight:
    """Return a weight with scales that suit it best by itself."""
    seen = weight.seen.astype(np.float32)
    steps: Array = np.ones_like(seen)
    held = weight.format
    if isinstance(held, Binary):
        scale = binary_weight_scales(seen)
    elif held.group:
        scale, steps = grouped_weight_scales(seen, held.group, 0, held.bits)
    else:
        scale = weight_scales(seen, 0, held.bits, method=method)
    multiplier = None
    if held.group or weight.factors is not None:
        factors = 1.0 if weight.factors is None else weight.factors
        multiplier = (steps / factors).astype(np.float32)
    return replace(weight, scale=scale.astype(np.float32).astype(np.float64), multiplier=multiplier)


def _biases(function: relax.Function) -> dict[relax.Var, relax.Var]:
    """Map each sum that constants are added to, and nothing else reads, to what that gives."""
    uses = count_uses(function)
    found: dict[relax.Var, relax.Var] = {}
    for var, value in bindings_of(function):
        if not qop.is_call(value, "relax.add"):
            continue
        tensors = [arg for arg in value.args if isinstance(arg, relax.Var)]
        if len(tensors) == 1 and uses[tensors[0]] == 1:
            found[tensors[0]] = var
    return found


def _scaled(call: relax.Call, weight: QuantizedWeight, values: relax.Expr) -> relax.Call:
    """Return the fake_quant of a weight that is output channels first."""
    attrs = qop.attributes(call)
    axis, groups = attrs["axis"], attrs["groups"]
    scale: Array = weight.scale
    if axis == 1 and weight.values.ndim > 2 and groups > 1:  # one for each output of each group
        whole = weight.scale.reshape(-1, 1, *(1,) * (weight.values.ndim - 2))
        scale = outputs_back(np.broadcast_to(whole, weight.values.shape), axis, groups)
    constants = [scale.astype(np.float32), np.zeros(1, np.int32)]
    if weight.multiplier is not None:
        constants.append(outputs_back(weight.multiplier, axis, groups))
    held = weight.format
    filled = {"calibrated": 1, "qmin": held.qmin, "qmax": held.qmax,
              "bounded": int(weight.bounded)}  # fmt: skip
    args = [values, *map(qop.constant, constants)]
    return qop.emit(qop.FAKE_QUANT, args, attrs | filled, call.span)


def _sum(bias: Array, correction: Array) -> Array:
    """Add a correction to constants of whatever rank, and keep theirs where that holds both."""
    total = bias + correction
    leading = total.ndim - max(bias.ndim, 1)
    return total.reshape(total.shape[leading:]) if set(total.shape[:leading]) <= {1} else total


def _float32(array: Array) -> relax.Expr:
    return qop.constant(array.astype(np.float32))


class _Writer(DataflowRewriter):
    """Writes what was chosen into the annotated graph."""

    def __init__(self, module: tvm.IRModule, chooser: _Chooser) -> None:
        super().__init__(module)
        self.chosen, self.corrections = chooser.chosen, chooser.corrections
        self.sums = chooser.sums
        # of sums that an addition of constants will correct, by their variables
        self.pending: dict[relax.Var, FloatArray] = {}
        self.biased = _biases(self.function)
        self.biases = set(self.biased.values())

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, qop.FAKE_QUANT) and var in self.chosen:
            return _scaled(value, self.chosen[var], self.lookup(value.args[0]))
        if qop.is_call(value, qop.FAKE_QUANT):
            return self._kept_sums(value)
        if not isinstance(value, relax.Call):
            return None
        if var in self.biases:
            return self._corrected_bias(value)
        correction = self._correction(value)
        if correction is None or not correction.any():
            return None
        rank = len(value.ty.shape.values)
        constant = along(correction, output_axis(value), rank)
        if var in self.biased:
            self.pending[var] = constant
            return None
        total = relax.op.add(self.emit(self.copy(value)), _float32(constant))
        return relax.Call(total.op, total.args, total.attrs, total.ty_args, value.span)

    def _kept_sums(self, call: relax.Call) -> relax.Call | None:
        """Give a result that is kept as sums their scale."""
        attrs = qop.attributes(call)
        if attrs["id"] not in self.sums:
            return None
        axis, scale = self.sums[attrs["id"]]
        filled = {"calibrated": 1, "qmin": INT32.qmin, "qmax": INT32.qmax,
                  "axis": axis if scale.size > 1 else -1}  # fmt: skip
        args = [self.lookup(call.args[0]), _float32(scale), call.args[2]]
        return qop.emit(qop.FAKE_QUANT, args, attrs | filled, call.span)

    def _correction(self, call: relax.Call) -> FloatArray | None:
        weight = call.args[1] if len(call.args) > 1 else None
        return self.corrections.get(weight) if isinstance(weight, relax.Var) else None

    def _corrected_bias(self, call: relax.Call) -> relax.Call | None:
        index = 0 if isinstance(call.args[0], relax.Var) else 1
        correction = self.pending.get(call.args[index])
        if correction is None:
            return None
        bias = qop.constant_array(call.args[1 - index]).astype(np.float64)
        args = [self.lookup(call.args[index]), _float32(_sum(bias, correction))]
        args = args if index == 0 else args[::-1]
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)


@tvm.ir.transform.module_pass(opt_level=0, name="FixScales")
class FixScales:
    """Choose the scales of weights and correct biases (see the module's description).

    Parameters
    ----------
    weight_method : str
        ``"minmax"`` or ``"mse"``: how the per-channel weight scale is chosen.
    bound_pairs : bool
        Round weights so that sums of two products fit 16 bits (`tvmquant.weight_pairs`), for
        processors that multiply bytes with ``vpmaddubsw``.
    input_means : mapping of str to sequence of float, optional
        Mean of each input channel, by layer; biases of these layers are corrected.
    input_powers : mapping of str to sequence of float, optional
        Mean square of each input channel, by layer: pairs are bounded where that adds little error.

    Raises
    ------
    QuantizationError
        If an activation is not calibrated, or an accumulator may leave 32 bits; names the layer.
    """

    def __init__(
        self,
        weight_method: str = "mse",
        bound_pairs: bool = False,
        input_means: Mapping[str, Sequence[float]] | None = None,
        input_powers: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.options = weight_method, bound_pairs, input_means or {}, input_powers or {}

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with every scale chosen."""
        chooser = _Chooser(module, *self.options)
        chooser.rewrite()
        return _Writer(module, chooser).rewrite()
