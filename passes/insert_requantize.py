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

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.arithmetic import INT32_MAX, dot_bounds, quantize_half_even
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, span_name, used_vars
from tvmquant.passes import scale_factors
from tvmquant.passes.accumulator import (
    Accumulator,
    Contraction,
    Multipliers,
    Quantized,
    QuantizedWeight,
    Term,
    choose_multipliers,
    factors_per_input,
)
from tvmquant.passes.elementwise import CAST, ELEMENTWISE, SELECT, evaluate, scalar_bound
from tvmquant.passes.region_operators import (
    EXTREMES,
    WEIGHT,
    has_usable_slopes,
    input_axis,
    is_boolean,
    is_embedding,
    is_exact_cast,
    is_linear,
    is_mover,
    is_repeated_constant,
    is_window_mean,
    keeps_shape,
    output_axis,
    slopes_of,
)
from tvmquant.passes.rounded_weights import weight_of
from tvmquant.passes.scale_factors import compressed, varying_axes

# stands for the step of a channel that is multiplied by 0
LEAST_STEP = 1e-300
# far beyond what an accumulator holds
MOST_STEPS = 2.0**40

CONTRACTIONS = {
    "relax.nn.conv2d": qop.QCONV2D,
    "relax.nn.conv2d_transpose": qop.QCONV2D_TRANSPOSE,
    "relax.matmul": qop.QDENSE,
}


class Chain:
    """A function of one 8-bit tensor with one scale: its real values at the 256 inputs."""

    def __init__(self, source: Quantized, values: Any) -> None:
        self.source = source
        self.values = values

    @classmethod
    def identity(cls, source: Quantized) -> Chain:
        """Return the chain x -> x."""
        steps = np.arange(256, dtype=np.float64) - source.zero_point
        return cls(source, steps * source.scale)


@dataclass(frozen=True)
class Extreme:
    """The greater or lesser of two tensors, once they have the scale that the result gets."""

    call: relax.Call
    operands: tuple[Quantized, ...]


Value: TypeAlias = (
    Quantized | Accumulator | Chain | Extreme | QuantizedWeight | Any
)  # or a relax.Expr


class Integerizer(DataflowRewriter):
    """Rounds what lies between two fake_quants at the second."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.values: dict[relax.Var, Value] = {}
        # of tensors with factors: the same, requantized to one scale
        self.one_scale: dict[relax.Expr, Quantized] = {}
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
            return self._fake_quant(call)
        is_exact = var in self.rounded and is_exact_cast(call, list(self.function.params))
        if is_exact and isinstance(self.value(call.args[0]), relax.Expr):
            return self._exact(call)
        operands = [self.value(a) for a in used_vars(call)]
        integers = [v for v in operands if not isinstance(v, relax.Expr)]
        if integers and len(integers) == len(operands):
            handler = self._handler(call)
            result = handler(var, call) if handler else None
            if result is not None:
                return result
        args = [self._float_operand(a) for a in call.args]
        return self.emit(relax.Call(call.op, args, call.attrs, call.ty_args, call.span))

    def _handler(self, call: relax.Call) -> Callable[[relax.Var, relax.Call], Value | None] | None:
        name = call.op.name
        if name in CONTRACTIONS:
            return self._contract
        if name in ("relax.mean", "relax.nn.avg_pool2d"):
            return self._pool
        if is_mover(call):
            return self._move
        if name == CAST:
            return self._cast
        layer = isinstance(self.value(call.args[0]), Accumulator)
        if name == "relax.nn.prelu" or (name == "relax.nn.leakyrelu" and layer):
            return self._slope
        return self._arithmetic if name in ELEMENTWISE else None

    # -- borders --------------------------------------------------------------------------------

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
        if isinstance(value, Chain) and is_boolean(var):
            return self._truth(value, var)
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

    def _truth(self, chain: Chain, var: relax.Var) -> relax.Expr:
        """Look a comparison up, for an operator that reads booleans."""
        args = [chain.source.expr, qop.constant(np.asarray(chain.values, np.uint8))]
        attrs = {"id": f"{var.name}.table", "out_dtype": "uint8"}
        return self.emit(relax.op.astype(self.emit(qop.emit(qop.TABLE, args, attrs)), "bool"))

    def _fake_quant(self, call: relax.Call) -> Value:
        attrs = qop.attributes(call)
        name = attrs["id"]
        if attrs["role"] == WEIGHT:
            return self.weight(call, attrs)
        if not attrs["calibrated"]:
            raise QuantizationError(f"tensor {name!r} is not calibrated; run ApplyCalibration")
        scale = qop.constant_array(call.args[1]).astype(np.float64)
        zero = int(qop.constant_array(call.args[2]).reshape(-1)[0])
        held = formats.parse(attrs["format"])
        rank = len(call.ty.shape.values)
        scales = along(scale, attrs["axis"], rank)
        target = Quantized.of(call.args[0], scales, zero, attrs["qmin"], attrs["qmax"], held)
        source = self.value(call.args[0])
        if isinstance(source, Quantized):
            return self._rescaled(source, target, name, call)
        if isinstance(source, Accumulator):
            return self._requantize(source, target, name, call)
        one_scale = replace(target, factors=None)
        if isinstance(source, Extreme):
            converted = self._compared(source, one_scale, name, call)
        elif isinstance(source, Chain):
            converted = self._table(source, one_scale, name, call)
        else:
            converted = self._quantize(source, one_scale, name, call)
        return self._rescaled(converted, target, name, call)

    def _exact(self, cast: relax.Call) -> Quantized:
        """Return an input of 8-bit integers, or booleans, as these."""
        expr = self.lookup(cast.args[0])
        if is_boolean(expr):
            expr = self.emit(relax.op.astype(expr, "uint8"))
        held = formats.parse(str(expr.ty.dtype.dtype))
        limits = np.iinfo(held.container)
        return Quantized(expr, 1.0, 0, int(limits.min), int(limits.max), held)

    def _extreme(self, var: relax.Var, call: relax.Call, values: list[Value]) -> Value | None:
        """Compare two tensors in the scale of the result, or in their own where it has none."""
        operands = tuple(v for v in values if isinstance(v, Quantized))
        if len(operands) < len(values):
            return None
        extreme = Extreme(call, operands)
        if var in self.rounded:
            return extreme
        widest = replace(max(operands, key=lambda v: v.scale), factors=None)
        return self._compared(extreme, widest, span_name(call), call)

    def _compared(self, source: Extreme, to: Quantized, name: str, call: relax.Call) -> Quantized:
        operands = [self._rescaled(v, to, name, call) for v in source.operands]
        of, exprs = source.call, [v.expr for v in operands]
        expr = self.emit(relax.Call(of.op, exprs, of.attrs, of.ty_args, of.span))
        qmin, qmax = min(v.qmin for v in operands), max(v.qmax for v in operands)
        return replace(to, expr=expr, qmin=qmin, qmax=qmax)

    def _rescaled(self, x: Quantized, to: Quantized, name: str, call: relax.Call) -> Quantized:
        """Return a tensor with the scale and zero point of ``to``."""
        if x.same_parameters(to):
            return x
        return self._requantize(_as_accumulator(x), to, name, call)

    def _with_one_scale(self, x: Quantized, call: relax.Call) -> Quantized:
        """Return a tensor for a reader that cannot absorb factors."""
        if x.factors is None:
            return x
        if x.expr not in self.one_scale:
            to = replace(x, factors=None)
            self.one_scale[x.expr] = self._rescaled(x, to, span_name(call), call)
        return self.one_scale[x.expr]

    def _quantize(self, x: relax.Expr, to: Quantized, name: str, call: relax.Call) -> Quantized:
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

    def _table(self, chain: Chain, to: Quantized, name: str, call: relax.Call) -> Quantized:
        real = np.nan_to_num(chain.values, nan=0.0, posinf=np.inf, neginf=-np.inf)
        steps = np.rint(np.clip(real / to.scale, -(2.0**31), 2.0**31)) + to.zero_point
        values = np.clip(steps, to.qmin, to.qmax).astype(to.dtype)
        args = [chain.source.expr, qop.constant(values)]
        attrs = {"id": name, "out_dtype": to.dtype}
        expr = self.emit(qop.emit(qop.TABLE, args, attrs, call.span))
        reached = values[chain.source.qmin : chain.source.qmax + 1]
        qmin, qmax = int(reached.min()), int(reached.max())
        return replace(to, expr=expr, factors=None, qmin=qmin, qmax=qmax)

    # -- regions --------------------------------------------------------------------------------

    def _contract(self, _var: relax.Var, call: relax.Call) -> Value | None:
        x, weight = (self.value(a) for a in call.args[:2])
        if not isinstance(x, Quantized) or not isinstance(weight, QuantizedWeight):
            return None
        # a border holds the zero point, which what a table or a clip gives need not reach
        x = replace(x, qmin=min(x.qmin, x.zero_point), qmax=max(x.qmax, x.zero_point))
        axis, rank = input_axis(call), len(call.ty.shape.values)
        if x.factors is not None and varying_axes(x.factors) != [axis]:
            x = self._with_one_scale(x, call)
        if x.factors is not None:
            groups = int(getattr(call.attrs, "groups", 1))
            factors = factors_per_input(x.factors.reshape(-1), groups, weight.values.shape)
            weight = replace(weight, factors=factors)
        layer = self.scaled(Contraction(call, x, weight))
        scale = along(x.scale * layer.weight.scale, output_axis(call), rank)
        term = Term(scale, np.zeros_like(scale), contraction=layer)
        return Accumulator((term,), np.zeros((1,) * rank))

    def _pool(self, _var: relax.Var, call: relax.Call) -> Value | None:
        x = self.value(call.args[0])
        if not isinstance(x, Quantized) or not is_window_mean(call):
            return None
        if x.factors is not None and varying_axes(x.factors) != [1]:
            x = self._with_one_scale(x, call)
        height, width = (_static(v, call) for v in call.args[0].ty.shape.values[2:])
        if qop.is_call(call, "relax.mean"):
            axes = {int(a) % 4 for a in call.attrs.axis}
            size = [height if 2 in axes else 1, width if 3 in axes else 1]
            window = {"pool_size": size, "strides": [1, 1], "padding": [0, 0, 0, 0],
                      "dilation": [1, 1]}  # fmt: skip
            counts = np.full((1, 1, 1, 1), np.prod(size), np.float64)
        else:
            window, counts = _pool_window(call, height, width)
        attrs = window | {"layout": "NCHW", "input_zero_point": x.zero_point,
                          "out_dtype": "int32", "id": span_name(call)}  # fmt: skip
        expr = self.emit(qop.emit(qop.POOL_SUM, [x.expr], attrs, call.span))
        bound = int(np.prod(window["pool_size"])) * x.bound
        term = Term(x.scales / counts, np.full((1, 1, 1, 1), bound), expr=expr)
        return Accumulator((term,), np.zeros((1, 1, 1, 1)))

    def _move(self, _var: relax.Var, call: relax.Call) -> Value | None:
        operands = [self.value(v) for v in used_vars(call)]
        inputs = [v for v in operands if isinstance(v, Quantized)]
        moved = call.args[0]
        constants = isinstance(moved, relax.Tuple) and len(moved.fields) > len(operands)
        if constants or len(inputs) < len(operands):
            return None
        if isinstance(moved, relax.Tuple):
            inputs = self._unify(inputs, call)
        scales = scale_factors.moved(call, [v.scales for v in inputs])
        if scales is None:
            inputs = [self._with_one_scale(v, call) for v in inputs]
            scales = scale_factors.one_factor(call, inputs[0].scales)
        if isinstance(moved, relax.Tuple):
            new = relax.op.concat([v.expr for v in inputs], int(call.attrs.axis))
        elif qop.is_call(call, "relax.nn.pad"):
            new, inputs = self._pad(inputs[0], call)
        else:
            new = relax.Call(
                call.op, [inputs[0].expr, *call.args[1:]], call.attrs, call.ty_args, call.span
            )
        return Quantized.of(
            self.emit(new),
            scales,
            inputs[0].zero_point,
            min(v.qmin for v in inputs),
            max(v.qmax for v in inputs),
            max((v.format for v in inputs), key=lambda held: held.bits),
        )

    def _unify(self, inputs: list[Quantized], call: relax.Call) -> list[Quantized]:
        """Bring the inputs of a concat to one zero point and type, where these differ.

        They then have the scale of the one with the widest range.
        """
        if len({(v.zero_point, v.dtype) for v in inputs}) == 1:
            return inputs
        widest = replace(max(inputs, key=lambda v: v.scale), factors=None)
        return [self._rescaled(v, widest, span_name(call), call) for v in inputs]

    def _pad(self, x: Quantized, call: relax.Call) -> tuple[relax.Expr, list[Quantized]]:
        """Return the call, and tensors that hold the integers of its result between them."""
        value = float(getattr(call.attrs, "pad_value", 0.0))
        steps = int(x.format.round(np.asarray(value / x.scale + x.zero_point)))
        widths, mode = [int(v) for v in call.attrs.pad_width], str(call.attrs.pad_mode)
        padded = relax.op.nn.pad(x.expr, widths, pad_mode=mode, pad_value=float(steps))
        return padded, [x, replace(x, qmin=steps, qmax=steps)] if mode == "constant" else [x]

    def _tuple_item(self, var: relax.Var, item: relax.TupleGetItem) -> relax.Expr:
        source = self.lookup(self.value(item.tuple_value))
        self.values[var] = self.emit(relax.TupleGetItem(source, item.index))
        return self.values[var]

    def _arithmetic(self, var: relax.Var, call: relax.Call) -> Value | None:
        operands = [a for a in call.args if isinstance(a, relax.Var | tvm.ir.GenericConst)]
        values = [self.value(a) for a in operands]
        if any(isinstance(v, Chain) for v in values):
            values = [self._with_one_scale(v, call) if isinstance(v, Quantized) else v
                      for v in values]  # fmt: skip
        tensors = [v for v in values if not isinstance(v, relax.Expr)]
        select = qop.is_call(call, SELECT)
        if len(tensors) > 1 and not _same_source(*tensors):
            if qop.is_call(call, *EXTREMES):
                return self._extreme(var, call, tensors)
            return None if select else self._two_tensors(call, tensors[0], tensors[1])
        constants = [qop.constant_array(a) for a in operands]
        if select and any(c is not None and c.size > 1 for c in constants):
            return None
        if any(c is not None for c in constants) and not keeps_shape(call, used_vars(call)[0]):
            return None
        if isinstance(tensors[0], Accumulator):
            return _extend(call, tensors[0], constants)
        if all(c is None or c.size == 1 for c in constants):
            values = [self._with_one_scale(v, call) if isinstance(v, Quantized) else v
                      for v in values]  # fmt: skip
            chains = [
                _as_chain(v).values if c is None else c.astype(np.float64).reshape(())
                for v, c in zip(values, constants, strict=True)
            ]
            source = next(_as_chain(v).source for v in values if not isinstance(v, relax.Expr))
            return Chain(source, evaluate(call, chains))
        return _extend(call, _as_accumulator(tensors[0]), constants)

    def _cast(self, _var: relax.Var, call: relax.Call) -> Value | None:
        chain = self.value(call.args[0])
        if not isinstance(chain, Chain) or str(call.attrs.dtype) != "float32":
            return None
        return Chain(chain.source, evaluate(call, [chain.values]))

    def _slope(self, _var: relax.Var, call: relax.Call) -> Value | None:
        x = self.value(call.args[0])
        if not isinstance(x, Quantized | Accumulator) or not has_usable_slopes(call):
            return None
        rank = len(call.ty.shape.values)
        slopes = along(
            slopes_of(call).astype(np.float64), int(getattr(call.attrs, "axis", 1)) % rank, rank
        )
        return replace(_as_accumulator(x), slopes=slopes)

    def _two_tensors(self, call: relax.Call, left: Value, right: Value) -> Value | None:
        if qop.is_call(call, "relax.add", "relax.subtract"):
            rank = len(call.ty.shape.values)
            first, second = (self._addend(v, other, call) for v, other in
                             ((left, right), (right, left)))  # fmt: skip
            if qop.is_call(call, "relax.subtract"):
                second = second.scaled(-np.ones((1,) * rank))
            if second.terms[0].contraction is not None:
                first, second = second, first
            return first.plus(second)
        if not (isinstance(left, Quantized) and isinstance(right, Quantized)):
            return None
        if not qop.is_call(call, "relax.multiply"):
            return None
        attrs = {"a_zero_point": left.zero_point, "b_zero_point": right.zero_point,
                 "out_dtype": "int32", "id": span_name(call)}  # fmt: skip
        expr = self.emit(qop.emit(qop.QMULTIPLY, [left.expr, right.expr], attrs, call.span))
        rank = len(call.ty.shape.values)
        scale = _of_rank(left.scales, rank) * _of_rank(right.scales, rank)
        bound = np.full((1,) * rank, left.bound * right.bound)
        return Accumulator((Term(scale, bound, expr=expr),), np.zeros((1,) * rank))

    def _addend(self, value: Value, other: Value, call: relax.Call) -> Accumulator:
        """Return an operand of a sum, with the rank of the sum.

        Beside a contraction a tensor may have factors along its output channels only.
        """
        layer = other.terms[0].contraction if isinstance(other, Accumulator) else None
        if isinstance(value, Quantized) and value.factors is not None and layer is not None:
            axis = output_axis(layer.call) - (len(call.ty.shape.values) - value.rank)
            if varying_axes(value.factors) != [axis]:
                value = self._with_one_scale(value, call)
        return _as_accumulator(value).of_rank(len(call.ty.shape.values))

    # -- requantization -------------------------------------------------------------------------

    def _requantize(
        self, region: Accumulator, to: Quantized, name: str, call: relax.Call
    ) -> Quantized:
        first, others = region.terms[0], region.terms[1:]
        if len(others) > 1:
            raise QuantizationError(
                f"node {name!r} adds {len(region.terms)} tensors in one rounding; at most two fit "
                "a kernel: annotate the graph with AnnotateQuantization, which keeps the others"
            )
        if first.contraction is not None:
            axis = output_axis(first.contraction.call)
            name = span_name(first.contraction.call) or name
            expr, chosen, offset = self.finish(first.contraction, region, to, name)
        else:
            expr = first.expr
            chosen, offset = _multipliers(region, to, name)
            axis, (chosen, offset) = _by_channel(chosen, offset)
        slopes = region.slopes is not None
        attrs: dict[str, Any] = {
            "acc_zero_point": first.zero_point,
            "residual_zero_point": others[0].zero_point if others else 0,
            "output_zero_point": to.zero_point,
            "qmin": int(_clip_bound(region.low, to).min()),
            "qmax": int(_clip_bound(region.high, to).max()),
            "axis": axis,
            "compute_dtype": chosen.compute_dtype,
            "out_dtype": to.dtype,
            "id": name,
        }
        args = [expr, *(_integers(a, chosen.compute_dtype) for a in
                        (chosen.values[0], chosen.shift, offset))]  # fmt: skip
        if slopes:
            attrs["slopes"] = 1
            args.append(_integers(chosen.values[1], chosen.compute_dtype))
        if others:
            args += [others[0].expr, _integers(chosen.values[1], chosen.compute_dtype)]
        out = self.emit(qop.emit(qop.REQUANTIZE, args, attrs, call.span), "y_q")
        return replace(to, expr=out, qmin=attrs["qmin"], qmax=attrs["qmax"])

    # -- contractions ---------------------------------------------------------------------------

    def weight(self, call: relax.Call, attrs: Mapping[str, Any]) -> QuantizedWeight:
        """Return the weight of a fake_quant."""
        if not attrs["calibrated"]:
            raise QuantizationError(f"weight {attrs['id']!r} has no scale; run FixScales")
        return weight_of(call, attrs)

    def scaled(self, layer: Contraction) -> Contraction:
        """Return a layer with a scale for its weight, before it is known what reads its sums."""
        return layer

    def finish(
        self, layer: Contraction, region: Accumulator, to: Quantized, name: str
    ) -> tuple[relax.Expr, Multipliers, Any]:
        """Round weight and bias, emit the contraction, and return how its sums are requantized.

        All arrays have shape (1,) or (O,) here: nothing beside a contraction varies otherwise.
        """
        x, weight = layer.x, layer.weight
        step, *others = (t.scale.reshape(-1) for t in region.terms)
        to_scale, bias = to.scales.reshape(-1), region.bias.reshape(-1)
        integers = weight.round(weight.scale)
        axes = tuple(range(1, integers.ndim))
        folded = -x.zero_point * integers.astype(np.int64).sum(axis=axes)
        steps = np.zeros(len(integers), np.int64)
        slopes = None if region.slopes is None else region.slopes.reshape(-1)
        if slopes is not None:  # of the sum with its bias: the sign decides
            steps = np.rint(
                np.clip(bias / np.where(step == 0.0, LEAST_STEP, step), -(2.0**40), 2.0**40)
            )
            steps = steps.astype(np.int64)
            folded, bias = folded + steps, np.zeros(1)
        _check_accumulator(layer, integers, folded, steps, name)
        span = tuple(end + steps for end in dot_span(integers, x))
        bound = np.maximum(*np.abs(span))
        chosen = choose_multipliers(
            [step / to_scale, *(s / to_scale for s in others)],
            [bound, *(t.bound.reshape(-1) for t in region.terms[1:])],
            to.zero_point, bias / to_scale, name=name, span=span, slopes=slopes,
            reach=reach_of(slopes, to),
        )  # fmt: skip
        offset = np.rint(np.ldexp(bias / to_scale, chosen.shift)).astype(np.int64)
        multiplier = weight.group_multiplier
        grouped = [] if multiplier is None else [qop.constant(multiplier)]
        levels = qop.constant(weight.levels(weight.scale))
        args = [x.expr, levels, qop.constant(folded.astype(np.int32)), *grouped]
        attrs = _contraction_attrs(layer, name)
        operator = CONTRACTIONS[layer.call.op.name]
        expr = self.emit(qop.emit(operator, args, attrs, layer.call.span), "acc")
        return expr, _by_sign(chosen, slopes), offset


def _integers(array: Any, dtype: str) -> relax.Expr:
    return qop.constant(np.atleast_1d(array).astype(dtype))


def _clip_bound(real: float, to: Quantized) -> Any:
    """Return the integers that stand for a bound, as an array that broadcasts."""
    with np.errstate(over="ignore"):
        steps = np.rint(np.clip(real / to.scales, -(2.0**31), 2.0**31)) + to.zero_point
    return np.clip(steps, to.qmin, to.qmax)


def along(values: Any, axis: int, rank: int) -> Any:
    """Shape (1,) or (C,) numbers so that they broadcast along an axis."""
    shape = [1] * rank
    if values.size > 1:
        shape[axis] = values.size
    return values.reshape(shape)


def _of_rank(array: Any, rank: int) -> Any:
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _multipliers(region: Accumulator, to: Quantized, name: str) -> tuple[Multipliers, Any]:
    """Return the multipliers and the offset of a region without a contraction."""
    scales = to.scales
    ratios = [t.scale / scales for t in region.terms]
    bounds = [t.bound for t in region.terms]
    chosen = choose_multipliers(
        ratios, bounds, to.zero_point, region.bias / scales, name=name, slopes=region.slopes,
        reach=reach_of(region.slopes, to),
    )  # fmt: skip
    offset = np.rint(np.ldexp(region.bias / scales, chosen.shift)).astype(np.int64)
    return chosen, offset


def reach_of(slopes: Any, to: Quantized) -> Any:
    """Return how many steps of the output negative sums may take, times their slopes."""
    if slopes is None:
        return 0.0
    return np.where(slopes > 0.0, to.zero_point - to.qmin, to.qmax - to.zero_point)


def _by_sign(chosen: Multipliers, slopes: Any) -> Multipliers:
    """Give each sign of the integers the multiplier that is its sum's in real numbers."""
    if slopes is None:
        return chosen
    positive, sloped = chosen.values
    flipped = positive < 0  # a negative sum of integers is a positive number
    values = np.where(flipped, sloped, positive), np.where(flipped, positive, sloped)
    return replace(chosen, values=values)


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


def _contraction_attrs(layer: Contraction, name: str) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "input_zero_point": layer.x.zero_point,
        "out_dtype": "int32",
        "id": name,
        "choice": str(BitChoice(layer.weight.format, layer.x.format)),
        "grouped": int(layer.weight.format.group > 0),
        "input_qmin": layer.x.qmin,
        "input_qmax": layer.x.qmax,
        "epilogue": 0,
    }
    source = layer.call.attrs
    if layer.call.op.name == "relax.matmul":
        return attrs
    attrs |= {key: [int(v) for v in getattr(source, key)]
              for key in ("strides", "padding", "dilation")}  # fmt: skip
    if layer.call.op.name == "relax.nn.conv2d_transpose":
        attrs["output_padding"] = [int(v) for v in source.output_padding]
    return attrs | {"groups": int(source.groups), "layout": "NCHW"}


def _as_accumulator(value: Any) -> Accumulator:
    if isinstance(value, Quantized):
        # kernels fold z * M into the offset, so that q * M itself must stay in range
        reach = max(abs(value.qmin), abs(value.qmax)) + abs(value.zero_point)
        ones = (1,) * value.rank
        term = Term(value.scales, np.full(ones, reach), value.zero_point, value.expr)
        return Accumulator((term,), np.zeros(ones))
    if isinstance(value, Accumulator):
        return value
    raise QuantizationError("a lookup table was not annotated; run AnnotateQuantization first")


def _as_chain(value: Any) -> Chain:
    return value if isinstance(value, Chain) else Chain.identity(value)


def _same_source(*values: Any) -> bool:
    """Whether values are functions of one tensor, of which some are more than the tensor itself."""
    if any(isinstance(v, Accumulator) for v in values):
        return False
    first, *others = [_as_chain(v).source.expr for v in values]
    is_chain = any(isinstance(v, Chain) for v in values)
    return is_chain and all(bool(other.same_as(first)) for other in others)


def _extend(call: relax.Call, region: Accumulator, constants: list[Any]) -> Accumulator | None:
    """Absorb a clip or an arithmetic operation with a constant into a region."""
    if qop.is_call(call, "relax.nn.relu"):
        return region.clipped(0.0, math.inf)
    if qop.is_call(call, "relax.clip"):
        return region.clipped(scalar_bound(call.args[1]), scalar_bound(call.args[2]))
    index = 0 if constants[0] is not None else 1
    layer = region.terms[0].contraction
    axis = None if layer is None else output_axis(layer.call)
    if len(constants) < 2 or not is_linear(call, constants[index], index == 0, axis):
        return None
    constant = _of_rank(constants[index].astype(np.float64), region.bias.ndim)
    if qop.is_call(call, "relax.add"):
        return region.shifted(constant)
    if qop.is_call(call, "relax.subtract"):
        return region.shifted(-constant)
    return region.scaled(constant if qop.is_call(call, "relax.multiply") else 1.0 / constant)


def _static(extent: Any, call: relax.Call) -> int:
    try:
        return int(extent)
    except TypeError:
        raise QuantizationError(
            f"node {span_name(call)!r}: pooling over an extent that is not known; "
            "bind the model's input shape"
        ) from None


def _pool_window(call: relax.Call, height: int, width: int) -> tuple[dict[str, Any], Any]:
    """Return the window attributes and how many values each window averages over."""
    a = call.attrs
    pool, strides, dilation = ([int(v) for v in getattr(a, k)]
                               for k in ("pool_size", "strides", "dilation"))  # fmt: skip
    top, left, bottom, right = (int(v) for v in a.padding)
    out = [int(v) for v in call.ty.shape.values[2:]]
    counts, ends = [], []
    for axis, (extent, begin, end) in enumerate(((height, top, bottom), (width, left, right))):
        first, last = (-begin, extent + end) if bool(a.count_include_pad) else (0, extent)
        starts = np.arange(out[axis]) * strides[axis] - begin
        taps = starts[:, None] + np.arange(pool[axis])[None] * dilation[axis]
        counts.append(((taps >= first) & (taps < last)).sum(axis=1))
        reach = int(taps.max()) + 1 - extent  # ceil_mode reaches past the given padding
        ends.append(max(end, reach))
    window = {"pool_size": pool, "strides": strides, "dilation": dilation,
              "padding": [top, left, ends[0], ends[1]]}  # fmt: skip
    area = np.maximum(np.outer(counts[0], counts[1]), 1).astype(np.float64)
    return window, compressed(area[None, None])


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
