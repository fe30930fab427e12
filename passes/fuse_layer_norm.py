"""Write a layer normalization that an exporter took apart as one operator again (L0).

Before::

    d = x - mean(x, axes); v = mean(d * d, axes); y = d / sqrt(v + epsilon)   # * gamma + beta

After::

    y = layer_norm(x, gamma, beta, axes, epsilon)

The square may be a power, a product or `square`, the quotient a product with 1 / sqrt. In pieces
each part would be rounded to 8 bits by itself, the variance and its root among them; as one
operator it is one float kernel between one dequantize and one quantize. Requires canonical form
(`CanonicalizeOps`). Factors and shifts that vary along other axes, or whose norm is read elsewhere
as well, stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.passes import quantized_ops as qop
from tvmquant.passes.rewriter import DataflowRewriter, bindings_of, count_uses

LAYER_NORM = "relax.nn.layer_norm"


class _Fuser(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        self.norms: dict[relax.Var, relax.Call] = {}  # by their variable, as they are by now

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        new: relax.Call | None = None
        if qop.is_call(value, LAYER_NORM):
            self.norms[var] = self.copy(value)
        elif qop.is_call(value, "relax.divide"):
            new = self._quotient(value, *value.args)
        elif qop.is_call(value, "relax.multiply", "relax.add"):
            new = self._affine(value)
        if new is not None:
            self.norms[var] = new
        return new

    def _made(self, operand: relax.Expr, *names: str) -> relax.Call | None:
        call = self.producer.get(operand) if isinstance(operand, relax.Var) else None
        return call if qop.is_call(call, *names) else None

    def _quotient(
        self, call: relax.Call, centered: relax.Expr, deviation: relax.Expr
    ) -> relax.Call | None:
        """Return the normalization that a quotient is."""
        root = self._made(deviation, "relax.sqrt")
        return None if root is None else self._norm(call, centered, root.args[0])

    def _norm(
        self, call: relax.Call, centered: relax.Expr, shifted: relax.Expr
    ) -> relax.Call | None:
        difference = self._made(centered, "relax.subtract")
        total = self._made(shifted, "relax.add")
        if difference is None or total is None:
            return None
        x, mean = difference.args[0], self._made(difference.args[1], "relax.mean")
        variance, epsilon = self._made(total.args[0], "relax.mean"), _scalar(total.args[1])
        if mean is None or variance is None or epsilon is None or not epsilon > 0.0:
            return None
        if not mean.args[0].same_as(x) or not self._is_square(variance.args[0], centered):
            return None
        extents = list(x.ty.shape.values)
        axes = _axes(mean)
        kept = bool(mean.attrs.keepdims) and bool(variance.attrs.keepdims)
        if not kept or axes != _axes(variance) or not all(_static(extents[a]) for a in axes):
            return None
        ones = np.ones([_static(extents[a]) for a in axes])
        return _layer_norm(self.lookup(x), ones, np.zeros_like(ones), axes, epsilon, call.span)

    def _is_square(self, operand: relax.Expr, of: relax.Expr) -> bool:
        call = self._made(operand, "relax.square", "relax.power", "relax.multiply")
        if call is None or not call.args[0].same_as(of):
            return False
        if qop.is_call(call, "relax.multiply"):
            return bool(call.args[1].same_as(of))
        return qop.is_call(call, "relax.square") or _scalar(call.args[1]) == 2.0

    def _inverse(self, operand: relax.Expr) -> relax.Expr | None:
        """Return what an operand is the inverse square root of."""
        call = self._made(operand, "relax.rsqrt", "relax.divide", "relax.power")
        if qop.is_call(call, "relax.rsqrt"):
            return call.args[0]
        if qop.is_call(call, "relax.power") and _scalar(call.args[1]) == -0.5:
            return call.args[0]
        if qop.is_call(call, "relax.divide") and _scalar(call.args[0]) == 1.0:
            root = self._made(call.args[1], "relax.sqrt")
            return None if root is None else root.args[0]
        return None

    def _affine(self, call: relax.Call) -> relax.Call | None:
        operand, constant = call.args[0], qop.constant_array(call.args[1])
        if constant is None:
            if not qop.is_call(call, "relax.multiply"):
                return None
            pairs = [(operand, self._inverse(call.args[1])), (call.args[1], self._inverse(operand))]
            found = [self._norm(call, d, v) for d, v in pairs if v is not None]
            return found[0] if found else None
        norm = self.norms.get(operand) if self.uses[operand] == 1 else None
        if norm is None or call.ty != operand.ty:
            return None
        gamma, beta = (qop.constant_array(a).astype(np.float64) for a in norm.args[1:])
        axes, rank = [int(a) for a in norm.attrs.axes], len(call.ty.shape.values)
        full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
        if any(extent > 1 and i not in axes for i, extent in enumerate(full.shape)):
            return None
        along = np.broadcast_to(full.reshape([full.shape[a] for a in axes]), gamma.shape)
        if qop.is_call(call, "relax.multiply"):
            gamma, beta = gamma * along, beta * along
        else:
            beta = beta + along
        return _layer_norm(norm.args[0], gamma, beta, axes, float(norm.attrs.epsilon), norm.span)


def _scalar(expr: relax.Expr) -> float | None:
    array = qop.constant_array(expr)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _axes(call: relax.Call) -> list[int]:
    rank = len(call.args[0].ty.shape.values)
    given = range(rank) if call.attrs.axis is None else call.attrs.axis
    return sorted(int(a) % rank for a in given)


def _static(extent: Any) -> int:
    return int(extent) if isinstance(extent, tvm.tirx.IntImm) else 0


def _layer_norm(
    x: relax.Expr, gamma: Any, beta: Any, axes: list[int], epsilon: float, span: tvm.ir.Span
) -> relax.Call:
    parameters = [qop.constant(np.asarray(v, np.float32)) for v in (gamma, beta)]
    call = relax.op.nn.layer_norm(x, *parameters, axes, epsilon)
    return relax.Call(call.op, call.args, call.attrs, call.ty_args, span)


@tvm.ir.transform.module_pass(opt_level=0, name="FuseLayerNorm")
class FuseLayerNorm:
    """Put layer normalizations together (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with whole normalizations."""
        return _Fuser(module).rewrite()
