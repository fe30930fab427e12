"""Write a layer normalization that an exporter took apart as one operator again (L0).

Before::

    d = x - mean(x, axes); v = mean(d * d, axes); y = d / sqrt(v + epsilon)   # * gamma + beta

After::

    y = layer_norm(x, gamma, beta, axes, epsilon)

The square may be a power, a product or `square`; the quotient a product with 1 / sqrt, into which
gamma has been multiplied or not; the mean a sum times 1 / count; and the variance, as JAX and
TensorFlow compute it, ``mean(x * x) - mean(x)**2``, clipped at 0. Statistics may have lost the axes
of extent 1 on the way. In pieces each part would be rounded to 8 bits by itself, the variance and
its root among them; as one operator it is one float kernel between one dequantize and one quantize.
Requires canonical form (`CanonicalizeOps`). Factors and shifts that vary along other axes, or whose
norm is read elsewhere as well, stay as they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import GenericConst

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses

LAYER_NORM = "relax.nn.layer_norm"
SQUARES = ("relax.square", "relax.power", "relax.multiply")


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
        x, mean = difference.args[0], self._mean(difference.args[1])
        epsilon = _scalar(total.args[1])
        if mean is None or epsilon is None or not epsilon > 0.0 or not mean[0].same_as(x):
            return None
        axes = mean[1]
        if axes != self._axes_of_variance(total.args[0], x, centered):
            return None
        extents = list(x.ty.shape.values)
        kept = [1 if a in axes else _static(extent) for a, extent in enumerate(extents)]
        statistics = (difference.args[1], shifted)
        if not all([_static(e) for e in s.ty.shape.values] == kept for s in statistics):
            return None
        ones = np.ones([_static(extents[a]) for a in axes])
        return _layer_norm(self.lookup(x), ones, np.zeros_like(ones), axes, epsilon, call.span)

    def _mean(self, operand: relax.Expr) -> tuple[relax.Expr, list[int]] | None:
        """Return what an operand is the mean of, and along which axes of known extent."""
        call = self._made(self._viewed(operand), "relax.mean", "relax.multiply", "relax.divide")
        factor = 1.0
        if qop.is_call(call, "relax.multiply", "relax.divide"):
            constant = _scalar(call.args[1])
            if not constant:
                return None
            factor = constant if qop.is_call(call, "relax.multiply") else 1.0 / constant
            call = self._made(self._viewed(call.args[0]), "relax.sum")
        if call is None:
            return None
        axes = _axes(call)
        count = math.prod(_static(call.args[0].ty.shape.values[axis]) for axis in axes)
        if not count or (qop.is_call(call, "relax.sum") and not math.isclose(
            factor * count, 1.0, rel_tol=1e-5
        )):  # fmt: skip
            return None
        return call.args[0], axes

    def _axes_of_variance(
        self, operand: relax.Expr, x: relax.Expr, centered: relax.Expr
    ) -> list[int] | None:
        """Return the axes along which an operand is the variance of ``x``."""
        operand = self._viewed(operand)
        clipped = self._made(operand, "relax.nn.relu")
        if clipped is not None:
            operand = self._viewed(clipped.args[0])
        mean = self._mean(operand)
        if mean is not None:
            return mean[1] if self._is_square(mean[0], centered) else None
        difference = self._made(operand, "relax.subtract")
        if difference is None:
            return None
        of_squares = self._mean(difference.args[0])
        square = self._made(self._viewed(difference.args[1]), *SQUARES)
        of_values = None if square is None else self._mean(square.args[0])
        if of_squares is None or square is None or of_values is None:
            return None
        alike = of_values[0].same_as(x) and of_values[1] == of_squares[1]
        squares = self._is_square(of_squares[0], x) and self._is_square(
            difference.args[1], square.args[0]
        )
        return of_squares[1] if alike and squares else None

    def _viewed(self, operand: relax.Expr) -> relax.Expr:
        """Return what an operand is but for reshapes, which of statistics move extents of 1."""
        while (call := self._made(operand, "relax.reshape")) is not None:
            before, after = (
                [e for e in v.ty.shape.values if _static(e) != 1] for v in (call.args[0], operand)
            )
            if not tvm_ffi.structural_equal(before, after):
                break
            operand = call.args[0]
        return operand

    def _is_square(self, operand: relax.Expr, of: relax.Expr) -> bool:
        call = self._made(self._viewed(operand), *SQUARES)
        if call is None or not call.args[0].same_as(of):
            return False
        if qop.is_call(call, "relax.multiply"):
            return bool(call.args[1].same_as(of))
        return qop.is_call(call, "relax.square") or _scalar(call.args[1]) == 2.0

    def _scaled_inverse(self, operand: relax.Expr) -> tuple[relax.Expr, relax.Expr | None] | None:
        """Return what an operand is the inverse square root of, and a constant it was scaled by."""
        shifted, gamma = self._inverse(operand), None
        scaled = self._made(operand, "relax.multiply")
        if shifted is None and scaled is not None and isinstance(scaled.args[1], GenericConst):
            shifted, gamma = self._inverse(scaled.args[0]), scaled.args[1]
        return None if shifted is None else (shifted, gamma)

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
        operand = call.args[0]
        if not isinstance(call.args[1], GenericConst):
            return self._product(call) if qop.is_call(call, "relax.multiply") else None
        norm = self.norms.get(operand) if self.uses[operand] == 1 else None
        return None if norm is None else _with_constant(norm, call, call.args[1])

    def _product(self, call: relax.Call) -> relax.Call | None:
        """Return the normalization that a product with an inverse deviation is."""
        left, right = call.args
        for centered, other in ((left, right), (right, left)):
            inverse = self._scaled_inverse(other)
            norm = None if inverse is None else self._norm(call, centered, inverse[0])
            if norm is None or inverse is None or inverse[1] is None:
                if norm is not None:
                    return norm
                continue
            scaled = _with_constant(norm, call, inverse[1])
            if scaled is not None:
                return scaled
        return None


def _with_constant(norm: relax.Call, call: relax.Call, constant: relax.Expr) -> relax.Call | None:
    """Return a normalization with a factor or a shift, where that varies along its axes only."""
    array, rank = qop.constant_array(constant), len(call.ty.shape.values)
    if not tvm_ffi.structural_equal(call.ty.shape, norm.args[0].ty.shape):
        return None
    gamma, beta = (qop.constant_array(a).astype(np.float64) for a in norm.args[1:])
    axes = [int(a) for a in norm.attrs.axes]
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
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
