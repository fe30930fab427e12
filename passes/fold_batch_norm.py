"""Fold batch normalization, and other arithmetic per channel, into weights and biases (L0).

Before::

    lv = conv2d(x, w) + b; y = batch_norm(lv, gamma, beta, mean, var)[0]

After::

    y = conv2d(x, w * s) + ((b - mean) * s + beta)               with s = gamma / sqrt(var + eps)

Requires canonical form (`CanonicalizeOps`). The layer may be a convolution of any groups, a
transposed convolution or a dense layer; multiplications and additions of constants per channel
that follow it are folded likewise. Nothing is folded into a result that has another reader.

A normalization *before* a layer is folded forward if the layer is its only reader and either

* the layer is dense, or an unpadded convolution; or
* the shift ``beta - mean * s`` is 0 in every channel

(the zeros of a padded border would otherwise have to become ``-shift / s``, and a transposed
convolution sums over part of its kernel at the border).

Guarantees that no inference ``batch_norm`` with constant parameters remains: what cannot be folded
becomes ``x * s + (beta - mean * s)``, with consecutive ones merged. Constants are computed in
float64 and rounded to float32 once. A folded layer keeps the span (ONNX node) of the layer.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import FloatArray
from tvmquant.errors import ModelError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses, span_name
from tvmquant.passes.channel_affine import (
    ONE,
    ZERO,
    ChannelAffine,
    Contraction,
    channel_vector,
    contraction_of,
    result_layout,
)

BATCH_NORM = "relax.nn.batch_norm"


class _Folder(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        self.affine: dict[relax.Var, ChannelAffine] = {}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if isinstance(value, relax.TupleGetItem):
            call = self.producer.get(value.tuple_value)
            return self._batch_norm(var, value.index, call) if _is_inference_norm(call) else None
        if contraction_of(value) is not None:
            return self._contraction(var, value)
        if qop.is_call(value, "relax.add", "relax.multiply"):
            return self._arithmetic(var, value)
        return None

    def _contraction(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        contraction = Contraction(self.copy(call))
        layout = result_layout(call)
        before = self._only_reader(call.args[0])
        if before is not None and before.source is not None and before.layout == layout:
            folded = contraction.absorb(before)
            if folded is not None:
                return self._bind(var, folded, call)
        self.affine[var] = ChannelAffine(None, contraction, layout)
        return None

    def _arithmetic(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        operand, constant = call.args[0], qop.constant_array(call.args[1])
        if constant is None or operand.ty != var.ty:
            return None
        known = self._only_reader(operand)
        before = known or self._plain(operand, constant)
        vector = channel_vector(constant, *before.layout)
        if vector is None:
            return None
        is_add = qop.is_call(call, "relax.add")
        after = before.then(*((ONE, vector) if is_add else (vector, ZERO)))
        if known is not None and not (is_add and known.is_bare):
            return self._bind(var, after, call)
        self.affine[var] = after
        return None

    def _batch_norm(self, var: relax.Var, index: int, call: relax.Call) -> relax.Expr | None:
        x, _gamma, _beta, mean, variance = call.args
        if index > 0:  # at inference the running statistics are what they were
            return self.lookup((mean, variance)[index - 1])
        parameters = normalization_of(call)
        if parameters is None:
            return None
        scale, shift = parameters
        rank, axis = len(var.ty.shape.values), int(call.attrs.axis)
        before = self._only_reader(x)
        if before is None or before.layout != (rank, axis):
            before = ChannelAffine(self.lookup(x), None, (rank, axis))
        return self._bind(var, before.then(scale, shift), call)

    def _only_reader(self, operand: relax.Var) -> ChannelAffine | None:
        """Return what is known of an operand that nothing else reads."""
        return self.affine.get(operand) if self.uses[operand] == 1 else None

    def _plain(self, operand: relax.Var, constant: Any) -> ChannelAffine:
        """Take the axis that a constant varies along for the channels of a tensor."""
        rank = len(operand.ty.shape.values)
        varying = [i - constant.ndim for i, extent in enumerate(constant.shape) if extent > 1]
        axis = rank + varying[0] if varying else (1 if rank == 4 else rank - 1)
        return ChannelAffine(self.lookup(operand), None, (rank, axis))

    def _bind(self, var: relax.Var, affine: ChannelAffine, call: relax.Call) -> relax.Expr:
        """Remember what ``var`` is and emit it; what it replaces is left without a reader."""
        self.affine[var] = affine
        if affine.contraction is None:
            span = call.span
            scaled = affine.source
            if np.any(affine.scale != 1.0):
                scaled = relax.op.multiply(scaled, affine.constant(affine.scale))
        else:
            layer = affine.contraction
            span = layer.call.span
            weight = layer.weight * layer.weight_per_output(affine.scale)
            args = [layer.call.args[0], qop.constant(weight.astype(np.float32))]
            scaled = relax.Call(layer.call.op, args, layer.call.attrs, layer.call.ty_args)
        result = self._emit_at(scaled, span, var)
        if np.any(affine.shift):
            shifted = relax.op.add(result, affine.constant(affine.shift))
            result = self._emit_at(shifted, span, var)
        return result

    def _emit_at(self, expr: relax.Expr, span: tvm.ir.Span, var: relax.Var) -> relax.Var:
        if not isinstance(expr, relax.Call):
            return expr
        return self.emit(relax.Call(expr.op, expr.args, expr.attrs, expr.ty_args, span), var.name)


def normalization_of(call: relax.Call) -> tuple[FloatArray, FloatArray] | None:
    """Return the scale and shift of an inference normalization; None if they are not constants.

    Raises
    ------
    ModelError
        If one is not finite; names the node.
    """
    parameters = [qop.constant_array(arg) for arg in call.args[1:]]
    if bool(call.attrs.training) or any(p is None for p in parameters):
        return None
    return _scale_and_shift(call, *(p.astype(np.float64) for p in parameters))


def _is_inference_norm(call: relax.Expr | None) -> TypeGuard[relax.Call]:
    return qop.is_call(call, BATCH_NORM) and not bool(call.attrs.training)


def _scale_and_shift(
    call: relax.Call, gamma: FloatArray, beta: FloatArray, mean: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1.0 / np.sqrt(variance + float(call.attrs.epsilon))
        if bool(call.attrs.scale):
            scale = scale * gamma
        shift = -mean * scale
    if bool(call.attrs.center):
        shift = shift + beta
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise ModelError(
            f"node {span_name(call)!r} (BatchNormalization): channel "
            f"{int(np.argmin(np.isfinite(scale) & np.isfinite(shift)))} has a scale or shift that "
            "is not finite; check its variance and the other parameters"
        )
    return scale, shift


@tvm.ir.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Fold normalizations into neighbouring layers (see the module's description).

    Raises
    ------
    ModelError
        If a normalization has a scale or shift that is not finite.
    """

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the folded module."""
        return _Folder(module).rewrite()
