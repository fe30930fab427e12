"""Turn the annotated float graph into integers with dyadic requantization (L1 -> L2).

Before::

    x_q = fake_quant(x); w_q = fake_quant(w); lv = relu(conv2d(x_q, w_q) + bias)
    y_q = fake_quant(lv + r_q)

After::

    acc = qconv2d(x, w, bias)                                      # int32
    y = requantize(acc, M, s, offset, r, M_r)                      # uint8, one rounding

Requires an L1 graph whose scales are all chosen (`ApplyCalibration`, `FixScales`), and only rounds:
no scale moves. Guarantees: every region found by `AnnotateQuantization` computes in integers only,
at equation (3) of `tvmquant.arithmetic`; every accumulator is proven to fit int32. Zero points of
the input are folded into an int32 vector beside the accumulator (``-z_x * sum(w)``, padding pads
with z_x); biases enter at the offset of (3), at ``2**-s`` of an output step: whole steps of the
accumulator, ``s_x * s_w``, are a sizeable part of an output step at 4 bits. Only a layer with
slopes, whose sign decides, has its bias in steps of the accumulator.

Ratios of scales that are dyadic (`FixScales` makes them so) become exact multipliers. Others are
rounded, in 64-bit arithmetic where 32 bits would not be exact enough.

Reference: Yao et al., HAWQ-V3, 2021, section 3 (dyadic arithmetic, residual connections).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.arithmetic import quantize_half_even
from tvmquant.errors import QuantizationError
from tvmquant.formats import INT16, INT32, UINT8, Binary
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, span_name, used_vars
from tvmquant.passes.accumulator import (
    Accumulator,
    Contraction,
    Quantized,
    QuantizedWeight,
    Term,
)
from tvmquant.passes.multipliers import Multipliers
from tvmquant.passes.region_kind import Open, RegionKind, Value
from tvmquant.passes.region_operators import (
    along,
    is_boolean,
    is_embedding,
    is_exact_cast,
    is_mover,
    is_repeated_constant,
)
from tvmquant.passes.regions import Chain, kinds_of
from tvmquant.passes.regions.byte_planes import sums_of_bytes
from tvmquant.passes.regions.contraction import rounded_layer
from tvmquant.passes.regions.dynamic import Dynamic, dynamic_tensor, value_of_dynamic
from tvmquant.passes.regions.requantization import as_accumulator, requantized
from tvmquant.passes.regions.window_sums import without_zero_points
from tvmquant.passes.rounded_weights import weight_of


class Integerizer(DataflowRewriter):
    """Rounds what lies between two fake_quants at the second."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.values: dict[relax.Var, Value] = {}
        # of tensors with factors: the same, requantized to one scale
        self.one_scale: dict[relax.Expr, Quantized] = {}
        self.float_weights: dict[relax.Var, relax.Expr] = {}
        self.rounded = {
            value.args[0]
            for _, value in bindings_of(self.function)
            if qop.is_call(value, qop.FAKE_QUANT)
        }

    # -- values ---------------------------------------------------------------------------------

    def value(self, expr: relax.Expr) -> Value:
        """Return what a variable of the L1 graph has become."""
        return self.values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """Return what a binding becomes, as far as it becomes anything by itself."""
        if isinstance(value, relax.Var):
            self.values[var] = self.value(value)
            return self.lookup(value)
        if isinstance(value, relax.TupleGetItem):
            return self._tuple_item(var, value)
        if isinstance(value, tvm.ir.GenericConst):
            return value  # a result that is always the same
        result = self._convert(var, value)
        if isinstance(result, relax.Call | relax.Tuple):
            result = self.emit(result, str(var.name))
        self.values[var] = result
        return result if isinstance(result, relax.Var) else var

    def visit_output(self, expr: relax.Expr) -> relax.Expr:
        """Return an output in float."""
        return self._float(expr)

    def _convert(self, var: relax.Var, call: relax.Call) -> Value:
        if qop.is_call(call, qop.FAKE_QUANT):
            if qop.attributes(call)["role"] == qop.WEIGHT:
                self.float_weights[var] = call.args[0]
            return self._fake_quant(call)
        if qop.is_call(call, qop.DEQUANTIZE, qop.QUANTIZE):
            border = self._border(call)
            if border is not None:
                return border
        is_exact = var in self.rounded and is_exact_cast(call, list(self.function.params))
        if is_exact and isinstance(self.value(call.args[0]), relax.Expr):
            return self._exact(call)
        if qop.is_call(call, dyn.DYNAMIC_QUANT):
            return dynamic_tensor(self, call, self._float_operand(call.args[0]))
        operands = [self.value(a) for a in used_vars(call)]
        if any(isinstance(v, Dynamic) for v in operands):
            result = value_of_dynamic(self, call, operands)
            return self._in_float(call) if result is None else result
        integers = [v for v in operands if not isinstance(v, relax.Expr)]
        if integers and len(integers) == len(operands):
            for kind in kinds_of(str(call.op.name)):
                if not all(_takes(kind, call, v) for v in integers):
                    continue
                result = kind.value(self, var, call, operands)
                if result is not None:
                    return result
        return self._in_float(call)

    # -- borders --------------------------------------------------------------------------------

    def _in_float(self, call: relax.Call) -> relax.Expr:
        args = [self._float_operand(a) for a in call.args]
        return self.emit(relax.Call(call.op, args, call.attrs, call.ty_args, call.span))

    def _float_operand(self, arg: relax.Expr) -> relax.Expr:
        if isinstance(arg, relax.Var):
            return self._float(arg)
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([self._float_operand(f) for f in arg.fields])
        return arg

    def _float(self, var: relax.Var) -> relax.Expr:
        value = self.value(var)
        if isinstance(value, relax.Expr):
            return self.lookup(value)
        if isinstance(value, Chain):
            name = str(var.name)
            return value.truth(self, name) if is_boolean(var) else value.real(self, name)
        if isinstance(value, Dynamic):
            return value.rounded(self)
        if isinstance(value, QuantizedWeight):  # of a layer that stays float
            return self.float_weights[var]
        if not isinstance(value, Quantized):
            raise QuantizationError(
                f"tensor {var.name!r} is needed in float but was not annotated; "
                "annotate the graph with AnnotateQuantization first"
            )
        attrs = {"zero_point": value.zero_point, "axis": -1, "out_dtype": "float32",
                 "id": f"{var.name}.dequantize"}  # fmt: skip
        scales = np.asarray([value.scale]) if value.factors is None else value.scales
        args = [value.expr, qop.constant(scales.astype(np.float32))]
        return self.emit(qop.emit(qop.DEQUANTIZE, args, attrs))

    def _fake_quant(self, call: relax.Call) -> Value:
        attrs = qop.attributes(call)
        name = attrs["id"]
        if attrs["role"] == qop.WEIGHT:
            return self.weight(call, attrs)
        if not attrs["calibrated"]:
            return self.uncalibrated(call, attrs)
        scale = qop.constant_array(call.args[1]).astype(np.float64)
        zero = int(qop.constant_array(call.args[2]).reshape(-1)[0])
        held = formats.parse(attrs["format"])
        rank = len(call.ty.shape.values)
        scales = along(scale, attrs["axis"], rank)
        target = Quantized.of(
            call.args[0], scales, zero, attrs["qmin"], attrs["qmax"], held,
            imported=attrs.get("ties") == "even",
        )  # fmt: skip
        return self.ended(call, replace(target, strict=bool(attrs.get("strict", 0))), name)

    def ended(self, call: relax.Call, target: Quantized, name: str) -> Quantized:
        """Round the region that a fake_quant ends."""
        source = self.value(call.args[0])
        if isinstance(source, Dynamic):
            source = source.rounded(self)
        if isinstance(source, Quantized):
            return self.rescaled(source, target, name, call)
        if isinstance(source, Accumulator):
            return requantized(self, source, target, name, call)
        if isinstance(source, Open):
            return source.rounded(self, target, name, call)
        if target.imported and target.factors is not None:  # rounded once, at its own scales
            factors = qop.constant(target.factors.astype(np.float32))
            source = self.emit(relax.op.divide(self.lookup(source), factors))
            alike = replace(target, factors=None)
            return replace(target, expr=self._quantize(source, alike, name, call).expr)
        converted = self._quantize(source, replace(target, factors=None), name, call)
        return self.rescaled(converted, target, name, call)

    def _border(self, call: relax.Call) -> Value | None:
        """Return integers of the model that an input is, or that an output shall be."""
        attrs = qop.attributes(call)
        source = self.value(call.args[0])
        if qop.is_call(call, qop.QUANTIZE):
            return self._stored(source, attrs) if isinstance(source, Quantized) else None
        if not isinstance(source, relax.Var) or attrs["axis"] >= 0:
            return None
        held = formats.parse(str(source.ty.dtype.dtype))
        limits = np.iinfo(held.container)
        scale = float(qop.constant_array(call.args[1]).reshape(-1)[0])
        least, most = int(limits.min), int(limits.max)
        return Quantized(self.lookup(source), scale, attrs["zero_point"], least, most, held)

    def _stored(self, x: Quantized, attrs: dict[str, Any]) -> relax.Expr | None:
        """Return integers in the model's own type; None where they have another scale."""
        offset = attrs["zero_point"] - x.zero_point
        alike = x.factors is None and np.float32(x.scale) == np.float32(attrs["scale"])
        if not alike or x.qmin + offset < attrs["qmin"] or x.qmax + offset > attrs["qmax"]:
            return None
        if x.dtype == attrs["out_dtype"] and offset == 0:
            return x.expr
        if x.dtype != "uint8":
            return None
        values = np.arange(256) + offset
        values = np.clip(values, attrs["qmin"], attrs["qmax"]).astype(attrs["out_dtype"])
        table = {"id": attrs["id"], "out_dtype": attrs["out_dtype"]}
        return self.emit(qop.emit(qop.TABLE, [x.expr, qop.constant(values)], table))

    def _exact(self, cast: relax.Call) -> Quantized:
        """Return an input of 8-bit integers, or booleans, as these."""
        expr = self.lookup(cast.args[0])
        if is_boolean(expr):
            expr = self.emit(relax.op.astype(expr, "uint8"))
        held = formats.parse(str(expr.ty.dtype.dtype))
        limits = np.iinfo(held.container)
        return Quantized(expr, 1.0, 0, int(limits.min), int(limits.max), held)

    def rescaled(self, x: Quantized, to: Quantized, name: str, call: relax.Call) -> Quantized:
        """Return a tensor with the scale and zero point of ``to``."""
        levels_kept = isinstance(x.format, Binary) or not isinstance(to.format, Binary)
        if levels_kept and x.same_parameters(to):
            return x
        return requantized(self, as_accumulator(x), to, name, call)

    def with_one_scale(self, x: Quantized, call: relax.Call) -> Quantized:
        """Return a tensor for a reader that cannot absorb factors."""
        if x.factors is None:
            return x
        if x.expr not in self.one_scale:
            to = replace(x, factors=None)
            self.one_scale[x.expr] = self.rescaled(x, to, span_name(call), call)
        return self.one_scale[x.expr]

    def _quantize(self, x: relax.Expr, to: Quantized, name: str, call: relax.Call) -> Quantized:
        if isinstance(to.format, Binary):
            return self._signs(x, to, name, call)
        attrs = {"scale": to.scale, "zero_point": to.zero_point, "qmin": to.qmin,
                 "qmax": to.qmax, "out_dtype": to.dtype, "id": name}  # fmt: skip
        made = self.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
        if is_repeated_constant(made) or is_embedding(made):
            constant = quantize_half_even(
                qop.constant_array(made.args[0]),
                to.scale,
                to.zero_point,
                to.qmin,
                to.qmax,
                to.dtype,
            )
            args = [qop.constant(constant), *made.args[1:]]
            new = relax.Call(made.op, args, made.attrs, made.ty_args, made.span)
        else:
            new = qop.emit(qop.QUANTIZE, [self.lookup(x)], attrs, call.span)
        expr = self.emit(new, "x_q")
        return replace(to, expr=expr, factors=None)

    def _signs(self, x: relax.Expr, to: Quantized, name: str, call: relax.Call) -> Quantized:
        """Return one of two levels for each number: by steps so small that only 0 rounds to 0.

        Of levels that are 0 and 2 scales, those are the steps.
        """
        one_sided = to.zero_point == to.qmin
        scale = 2.0 * to.scale if one_sided else float(np.finfo(np.float32).tiny)
        zero = 0 if one_sided else to.zero_point
        steps = replace(
            to,
            scale=scale,
            zero_point=zero,
            qmin=zero - (not one_sided),
            qmax=zero + 1,
            format=UINT8,
        )
        rounded = self._quantize(x, steps, name, call)
        least = zero + (one_sided or to.strict)
        values = np.where(np.arange(256) >= least, to.qmax, to.qmin).astype(np.uint8)
        table = {"id": name, "out_dtype": "uint8"}
        expr = self.emit(qop.emit(qop.TABLE, [rounded.expr, qop.constant(values)], table))
        return replace(to, expr=expr, factors=None)

    def _tuple_item(self, var: relax.Var, item: relax.TupleGetItem) -> relax.Expr:
        value = self.value(item.tuple_value)
        if isinstance(value, Accumulator):  # of a normalization
            self.values[var] = value
            return var
        self.values[var] = self.emit(relax.TupleGetItem(self.lookup(value), item.index))
        return self.values[var]

    def uncalibrated(self, call: relax.Call, attrs: Mapping[str, Any]) -> Quantized:
        """Return what a fake_quant without a scale gives."""
        raise QuantizationError(f"tensor {attrs['id']!r} is not calibrated; run ApplyCalibration")

    # -- contractions ---------------------------------------------------------------------------

    def weight(self, call: relax.Call, attrs: Mapping[str, Any]) -> QuantizedWeight:
        """Return the weight of a fake_quant."""
        if not attrs["calibrated"]:
            raise QuantizationError(f"weight {attrs['id']!r} has no scale; run FixScales")
        return weight_of(call, attrs)

    def scaled(self, layer: Contraction) -> Contraction:
        """Return a layer with a scale for its weight, before it is known what reads its sums."""
        return layer

    def without_zero_points(self, region: Accumulator) -> Accumulator:
        """Return a region whose weight has zero point 0; see `window_sums`."""
        return without_zero_points(self, region)

    def sums_of_bytes(self, layer: Contraction) -> tuple[Term, Term]:
        """Return the terms of a layer that reads 16 bits; see `byte_planes`."""
        return sums_of_bytes(self, layer)

    def finish(
        self, layer: Contraction, region: Accumulator, to: Quantized, name: str
    ) -> tuple[relax.Expr, Multipliers, Any]:
        """Emit a layer whose region ends; see `rounded_layer`."""
        return rounded_layer(self, layer, region, to, name)


def _takes(kind: RegionKind, call: relax.Call, value: Value) -> bool:
    """Whether a kind of region reads a tensor: kernels compute with 8 bits."""
    if not isinstance(value, Quantized) or value.format.bits <= formats.MOST_BITS or is_mover(call):
        return True
    return kind.takes_wide and value.imported and value.format in (INT16, INT32)


@tvm.ir.transform.module_pass(opt_level=0, name="InsertRequantize")
class InsertRequantize:
    """Integerize a calibrated L1 graph (see the module's description).

    Raises
    ------
    QuantizationError
        If a tensor has no scale, an accumulator may leave 32 bits, or a requantization 64; names
        the layer.
    """

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the L2 module."""
        return Integerizer(module).rewrite()
