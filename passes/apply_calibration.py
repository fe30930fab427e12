"""Give the fake_quant of every activation its scale and zero point (still L1).

Before::

    lv_q = fake_quant(lv, scale=[0.], zero_point=[0]) {calibrated: 0, format: "uint8"}

After::

    lv_q = fake_quant(lv, scale=[0.0235], zero_point=[0]) {calibrated: 1, qmin: 0, qmax: 255}

Requires an annotated graph; fake_quants that are already calibrated are left alone, and weights and
results that are kept as sums to `FixScales`.
Signed symmetric activations that layers read are stored with zero point 2**(bits - 1), so that all
of them share the container ``uint8``.

The two levels of a binary activation are 0 and twice its scale (zero point 127) where nothing is
negative, else the scale on either side of 0 (zero point 128).

Tensors of one group (they meet in a concat) get one zero point, the one for which their steps grow
least beyond what each would have by itself. Where a reader takes one scale they get one range, the
union of theirs, unless that is `UNLIKE` times as wide as one of them: then it is cheaper to
requantize for that reader.

What a float operator divides by never becomes 0 unless it was calibrated with either sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.errors import QuantizationError
from tvmquant.formats import INT32, UBINARY, Binary
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of
from tvmquant.passes import scale_factors
from tvmquant.quantizer import affine_parameters

# scale, zero point, qmin, qmax
_Quantizer: TypeAlias = tuple[float, int, int, int]


# Ranges of one group that are no more than so many times as wide as others get one scale where a
# reader takes one scale: two bits of the narrowest are lost at most.
UNLIKE = 4.0
LEAST_SCALE = float(np.finfo(np.float32).tiny)


class _Filler(DataflowRewriter):
    def __init__(
        self,
        module: tvm.IRModule,
        ranges: Mapping[str, tuple[float, float]],
        channel_factors: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__(module)
        self.channel_factors = channel_factors
        self.ranges = ranges
        self.quantizers = self._group_quantizers()
        self.producer = dict(bindings_of(self.function))

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value)
        if attrs["calibrated"] or attrs["role"] == qop.WEIGHT or attrs["format"] == INT32.name:
            return None
        constants, filled = self._activation(attrs, value.args[0])
        return qop.emit(
            qop.FAKE_QUANT,
            [self.lookup(value.args[0]), *(qop.constant(array) for array in constants)],
            attrs | filled | {"calibrated": 1},
            value.span,
        )

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
        one_bit = attrs["format"] == UBINARY.name
        if attrs["id"] in self.channel_factors and axis is not None and not one_bit:
            scales = scale * np.asarray(self.channel_factors[attrs["id"]])
            filled["axis"] = axis
        return [scales.astype(np.float32), np.asarray([zero], np.int32)], filled


def _quantizer(low: float, high: float, attrs: dict[str, Any]) -> _Quantizer:
    held = formats.parse(attrs["format"])
    if isinstance(held, Binary):
        return _binary_quantizer(low, high, held)
    scale, zero, qmin, qmax = affine_parameters(low, high, bits=held.bits, scheme=attrs["scheme"])
    if qmin < held.qmin:  # signed levels, in a container without signs
        half = 1 << (held.bits - 1)
        zero, qmin, qmax = zero + half, qmin + half, qmax + half
    return scale, zero, qmin, qmax


def _binary_quantizer(low: float, high: float, held: Binary) -> _Quantizer:
    """Return the quantizer whose levels are the ends of a range: 0 is one if nothing is below."""
    if low >= 0.0:
        return max(high / 2.0, LEAST_SCALE), held.qmin, held.qmin, held.qmax
    return max(high, -low, LEAST_SCALE), held.middle, held.qmin, held.qmax


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
    """Fill in scales and zero points of activations.

    Parameters
    ----------
    ranges : mapping of str to (float, float)
        Range in real units of every activation edge, by fake_quant id.
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
        factors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.ranges = ranges
        self.factors = factors or {}

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the calibrated module."""
        return _Filler(module, self.ranges, self.factors).rewrite()
