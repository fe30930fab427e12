"""Give every fake_quant its scale and zero point (still L1).

Before::

    lv_q = fake_quant(lv, scale=[0.], zero_point=[0]) {calibrated: 0, format: "uint8"}

After::

    lv_q = fake_quant(lv, scale=[0.0235], zero_point=[0]) {calibrated: 1, qmin: 0, qmax: 255}

Activations take theirs from calibrated ranges, weights from their own values (symmetric, per
channel). Requires an annotated graph; fake_quants that are already calibrated are left alone.
Signed symmetric activations that layers read are stored with zero point 2**(bits - 1), so that all
of them share the container ``uint8``.

Tensors of one group (they meet in a concat) get one zero point, the one for which their steps grow
least beyond what each would have by itself. Where a reader takes one scale they get one range, the
union of theirs, unless that is `UNLIKE` times as wide as one of them: then it is cheaper to
requantize for that reader.

What a float operator divides by never becomes 0 unless it was calibrated with either sign.

A weight that multiplies a tensor whose scales differ is quantized as what multiplies the integers,
``w * factors`` (`scale_factors`): its steps are ``scale * multiplier``, multiplier = 1 / factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.arithmetic import FloatArray
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, used_vars
from tvmquant.passes import scale_factors
from tvmquant.passes.accumulator import factors_per_input
from tvmquant.passes.channel_affine import CONV2D, CONV2D_TRANSPOSE, MATMUL
from tvmquant.passes.region_operators import is_mover
from tvmquant.quantizer import affine_parameters, grouped_weight_scales, weight_scales

# scale, zero point, qmin, qmax
_Quantizer: TypeAlias = tuple[float, int, int, int]


# Ranges of one group that are no more than so many times as wide as others get one scale where a
# reader takes one scale: two bits of the narrowest are lost at most.
UNLIKE = 4.0


@dataclass(frozen=True)
class _Scales:
    """The integers that a tensor holds: scales, broadcast against it, and zero point."""

    values: FloatArray
    zero_point: int
    container: np.dtype[Any]


class _Filler(DataflowRewriter):
    def __init__(
        self,
        module: tvm.IRModule,
        ranges: Mapping[str, tuple[float, float]],
        weight_method: str,
        channel_factors: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__(module)
        self.channel_factors = channel_factors
        self.ranges = ranges
        self.weight_method = weight_method
        self.quantizers = self._group_quantizers()
        self.producer = dict(bindings_of(self.function))
        self.layers = {
            value.args[1]: value
            for value in self.producer.values()
            if qop.is_call(value, CONV2D, CONV2D_TRANSPOSE, MATMUL)
        }
        # of what the graph holds in integers, by the variable of the old function
        self.scales: dict[relax.Var, _Scales] = {}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            self._follow(var, value)
            return None
        attrs = qop.attributes(value)
        x = self.lookup(value.args[0])
        constants = [qop.constant_array(a) for a in value.args[1:]]
        filled: dict[str, int] = {}
        if not attrs["calibrated"]:
            constants, filled = (
                self._weight(x, attrs, self._factors(var))
                if attrs["role"] == "weight"
                else self._activation(attrs, value.args[0])
            )
        if attrs["role"] != "weight":
            scale = constants[0].astype(np.float64)
            shape = [1] * len(value.ty.shape.values)
            if scale.size > 1:
                shape[filled.get("axis", attrs["axis"])] = scale.size
            zero = int(constants[1].reshape(-1)[0])
            container = formats.parse(attrs["format"]).container
            self.scales[var] = _Scales(scale.reshape(shape), zero, container)
        return qop.emit(
            qop.FAKE_QUANT,
            [x, *(qop.constant(array) for array in constants)],
            attrs | filled | {"calibrated": 1},
            value.span,
        )

    # -- activations ----------------------------------------------------------------------------

    def _range(self, attrs: dict[str, Any]) -> tuple[float, float]:
        name = attrs["range_of"] or attrs["id"]
        if name not in self.ranges:
            raise QuantizationError(
                f"no calibrated range for the tensor {name!r}; calibrate this model again"
            )
        low, high = self.ranges[name]
        return min(low, attrs["least"]), max(high, attrs["greatest"])

    def _group_quantizers(self) -> dict[str, _Quantizer]:
        """Return the quantizers of the tensors that belong to groups, by their ids."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for _, value in bindings_of(self.function):
            if qop.is_call(value, qop.FAKE_QUANT):
                attrs = qop.attributes(value)
                if attrs["group"] and not attrs["calibrated"]:
                    groups.setdefault(attrs["group"], []).append(attrs)
        quantizers: dict[str, _Quantizer] = {}
        for members in groups.values():
            ranges = [self._range(attrs) for attrs in members]
            widths = [high - low for low, high in ranges if high > low]
            alike = not widths or max(widths) <= UNLIKE * min(widths)
            if members[0]["shares"] == "scale" and alike:
                union = min(low for low, _ in ranges), max(high for _, high in ranges)
                ranges = [union] * len(ranges)
            chosen = [_quantizer(*r, attrs) for r, attrs in zip(ranges, members, strict=True)]
            aligned = _with_one_zero_point(chosen, ranges)
            quantizers |= {a["id"]: q for a, q in zip(members, aligned, strict=True)}
        return quantizers

    def _activation(self, attrs: dict[str, Any], x: relax.Expr) -> tuple[list[Any], dict[str, int]]:
        quantizer = self.quantizers.get(attrs["id"]) or _quantizer(*self._range(attrs), attrs)
        scale, zero, qmin, qmax = quantizer
        if attrs["nonzero"]:
            low, high = self.ranges[attrs["id"]]
            qmin, qmax = zero + 1 if low > 0.0 else qmin, zero - 1 if high < 0.0 else qmax
        filled = {"qmin": qmin, "qmax": qmax}
        scales = np.asarray([scale])
        axis = scale_factors.channel_axis(self.producer, x)
        if attrs["id"] in self.channel_factors and axis is not None:
            scales = scale * np.asarray(self.channel_factors[attrs["id"]])
            filled["axis"] = axis
        return [scales.astype(np.float32), np.asarray([zero], np.int32)], filled

    def _follow(self, var: relax.Var, value: relax.Expr) -> None:
        """Note what integers a mover gives, as `InsertRequantize` makes them."""
        if isinstance(value, relax.Var) and value in self.scales:
            self.scales[var] = self.scales[value]
            return
        sources = [self.scales.get(v) for v in used_vars(value)]
        known = [s for s in sources if s is not None]
        if not known or len(known) < len(sources) or _joins_constants(value):
            return
        first, scales = known[0], None
        if isinstance(value, relax.Call) and is_mover(value):
            if len({(s.zero_point, s.container) for s in known}) == 1:
                scales = scale_factors.moved(value, [s.values for s in known])
        elif not isinstance(value, relax.TupleGetItem):
            return
        if scales is None:  # requantized to one scale on the way
            widest = np.asarray(max(float(s.values.max()) for s in known))
            is_call = isinstance(value, relax.Call)
            rank = first.values.ndim
            scales = (
                scale_factors.one_factor(value, widest) if is_call else widest.reshape((1,) * rank)
            )
        self.scales[var] = replace(first, values=scales)

    # -- weights --------------------------------------------------------------------------------

    def _factors(self, weight: relax.Var) -> FloatArray | None:
        """Return the factors of the scales that a weight's layer reads, to broadcast against it."""
        layer = self.layers.get(weight)
        read = self.scales.get(layer.args[0]) if layer is not None else None
        if layer is None or read is None or scale_factors.is_uniform(read.values):
            return None
        axis = read.values.ndim - 1 if qop.is_call(layer, MATMUL) else 1
        if scale_factors.varying_axes(read.values) != [axis]:
            return None
        factors: FloatArray = read.values.reshape(-1) / read.values.max()
        shape = tuple(int(extent) for extent in weight.ty.shape.values)
        if not qop.is_call(layer, CONV2D):
            per_input: FloatArray = factors.reshape(-1, *(1,) * (len(shape) - 1))
            return per_input
        return factors_per_input(factors, int(layer.attrs.groups), shape)

    def _weight(
        self, x: relax.Expr, attrs: dict[str, Any], factors: FloatArray | None
    ) -> tuple[list[Any], dict[str, int]]:
        axis, held = attrs["axis"], formats.parse(attrs["format"])
        weight = qop.constant_array(x)
        if factors is not None:
            weight = (weight * factors).astype(np.float32)
        multiplier = None
        if held.group:
            scales, multiplier = grouped_weight_scales(weight, held.group, axis, held.bits)
        else:
            scales = weight_scales(weight, axis, held.bits, method=self.weight_method)
        if factors is not None:
            steps = np.ones_like(weight) if multiplier is None else multiplier
            multiplier = (steps / factors).astype(np.float32)
        multipliers = [] if multiplier is None else [multiplier]
        constants = [scales.astype(np.float32), np.zeros(1, np.int32), *multipliers]
        return constants, {"qmin": held.qmin, "qmax": held.qmax}


def _joins_constants(value: relax.Expr) -> bool:
    """Whether a call concatenates tensors with constants."""
    fields = getattr(value.args[0], "fields", ()) if isinstance(value, relax.Call) else ()
    return any(isinstance(field, tvm.ir.GenericConst) for field in fields)


def _quantizer(low: float, high: float, attrs: dict[str, Any]) -> _Quantizer:
    held = formats.parse(attrs["format"])
    scale, zero, qmin, qmax = affine_parameters(low, high, bits=held.bits, scheme=attrs["scheme"])
    if qmin < held.qmin:  # signed levels, in a container without signs
        half = 1 << (held.bits - 1)
        zero, qmin, qmax = zero + half, qmin + half, qmax + half
    return scale, zero, qmin, qmax


def _with_one_zero_point(
    quantizers: list[_Quantizer], ranges: list[tuple[float, float]]
) -> list[_Quantizer]:
    """Return quantizers that hold the same ranges with the zero point that suits all best."""
    if len({zero for _, zero, _, _ in quantizers}) == 1:
        return quantizers
    low, high = (np.asarray(ends, np.float64)[:, None] for ends in zip(*ranges, strict=True))
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    own = np.asarray([scale for scale, *_ in quantizers])[:, None]
    _, _, qmin, qmax = quantizers[0]
    zeros = np.arange(qmin, qmax + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(low < 0.0, -low / (zeros - qmin), 0.0)
        above = np.where(high > 0.0, high / (qmax - zeros), 0.0)
    scales = np.maximum(below, above)
    empty = (scales == 0.0).all(axis=1, keepdims=True)
    scales = np.where(empty, own, scales)
    best = int(np.argmin(np.square(scales / own).sum(axis=0)))
    zero = int(zeros[best])
    return [(float(scale), zero, qmin, qmax) for scale in scales[:, best]]


@tvm.ir.transform.module_pass(opt_level=0, name="ApplyCalibration")
class ApplyCalibration:
    """Fill in scales and zero points.

    Parameters
    ----------
    ranges : mapping of str to (float, float)
        Range in real units of every activation edge, by fake_quant id.
    weight_method : str
        ``"minmax"`` or ``"mse"``: how the per-channel weight scale is chosen.
    factors : mapping of str to sequence of float, optional
        Of the scale of each channel, by fake_quant id, of activations that get several.

    Raises
    ------
    QuantizationError
        If an activation has no range.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]],
        weight_method: str = "mse",
        factors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.ranges = ranges
        self.weight_method = weight_method
        self.factors = factors or {}

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the calibrated module."""
        return _Filler(module, self.ranges, self.weight_method, self.factors).rewrite()
