"""Bring the constant of a matrix product to the right, as one matrix (L0).

Before, with constants W, of a matrix or of one for each of B channels::

    matmul(W (M, K), x (N, ..., K, L));  matmul(x (N, ..., K), W (1, K, M))
    matmul(W (B, M, K), x (N, B, K, L)); matmul(x (N, B, L, K), W (B, K, M))

After, ``t`` exchanging the last two axes::

    t(matmul(t(x), t(W)));               matmul(x, W[0])
    conv2d(x as (N, B * K, 1, L), W as (B * M, K, 1, 1), groups=B) as (N, B, M, L)
    t(the same of t(x), t(W))

A dense layer has one constant matrix, its second operand; matrices for each of several channels are
a grouped convolution of width L. The last ``t`` moves down behind functions and constants, which so
stay in the region of their layer. Products whose constants differ along the batch, or give the
tensor more axes or channels than it has, stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, count_uses, used_vars
from tvmquant.passes.elementwise import ELEMENTWISE


class _Arranger(DataflowRewriter):
    """Keep what results are the exchange of; they are made when they are read."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(self.function)
        self.exchanges: dict[relax.Var, relax.Var] = {}
        self.spans: dict[relax.Var, tvm.ir.Span] = {}
        self.not_made: set[relax.Var] = set()

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, *ELEMENTWISE):
            return self._elementwise(var, value)
        return self._product(var, value) if qop.is_call(value, "relax.matmul") else None

    def lookup(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Var) and expr in self.not_made:
            self.not_made.remove(expr)
            self.replace(expr, self._exchanged(self.exchanges[expr], self.spans[expr]))
        return super().lookup(expr)

    def _keep(self, var: relax.Var, exchange: relax.Var, span: tvm.ir.Span) -> relax.Var:
        self.exchanges[var] = exchange
        self.spans[var] = span
        self.not_made.add(var)
        return var

    def _elementwise(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        """Apply a function, or constants, to the exchange of what nothing else reads."""
        tensors, rank = used_vars(call), len(call.ty.shape.values)
        if len(tensors) != 1 or tensors[0] not in self.not_made or self.uses[tensors[0]] > 1:
            return None
        if len(tensors[0].ty.shape.values) != rank:
            return None
        args = [
            self.exchanges[a] if a in self.exchanges else _exchanged_constant(a) for a in call.args
        ]
        new = relax.Call(call.op, args, call.attrs, call.ty_args)
        return self._keep(var, self._named(new, call.span), call.span)

    def _product(self, var: relax.Var, value: relax.Call) -> relax.Expr | None:
        arrays = [qop.constant_array(operand) for operand in value.args]
        if all(array is None for array in arrays) or any(not qop.is_float(a) for a in value.args):
            return None
        constant_first = arrays[0] is not None
        weight, x = arrays[0 if constant_first else 1], value.args[1 if constant_first else 0]
        if not isinstance(x, relax.Var) or len(x.ty.shape.values) < 2:
            return None
        if weight.ndim == 1:
            return self._vector(var, value, x, weight) if constant_first else None
        while weight.ndim > 2 and weight.shape[0] == 1 and weight.ndim <= len(x.ty.shape.values):
            weight = weight[0]
        span, shape = value.span, list(x.ty.shape.values)
        if weight.ndim == 2 and not constant_first:
            matrix = qop.constant(weight)
            if matrix.ty == value.args[1].ty:
                return None
            return self._named(relax.op.matmul(self.lookup(x), matrix), span)
        if weight.ndim == 2 and len(shape) > 2:  # else it would mix the batch
            exchanged = self._exchanged(self.lookup(x), span)
            product = relax.op.matmul(exchanged, qop.constant(weight.T))
            return self._keep(var, self._named(product, span), span)
        if weight.ndim != 3 or len(shape) != 4 or not _extends(shape[1:], weight.shape[0]):
            return None
        if constant_first:
            return self._grouped(self.lookup(x), weight, span)
        exchanged = self._exchanged(self.lookup(x), span)
        return self._keep(var, self._grouped(exchanged, weight.swapaxes(1, 2), span), span)

    def _vector(
        self, var: relax.Var, call: relax.Call, x: relax.Var, weight: Any
    ) -> relax.Expr | None:
        """Multiply by a row from the left."""
        if len(x.ty.shape.values) < 3:
            return None
        exchanged = self._exchanged(self.lookup(x), call.span)
        product = relax.op.matmul(exchanged, qop.constant(weight[:, None]))
        shape = var.ty.shape
        return self._named(relax.op.reshape(self._named(product, call.span), shape), call.span)

    def _grouped(self, x: relax.Expr, weight: Any, span: tvm.ir.Span) -> relax.Var:
        """Multiply the matrix of each channel by a constant of its own from the left."""
        batch, channels, inputs, columns = x.ty.shape.values
        _, outputs, _ = weight.shape
        image = relax.op.reshape(x, (batch, int(channels) * int(inputs), 1, columns))
        kernel = np.ascontiguousarray(weight.reshape(-1, int(inputs), 1, 1))
        product = relax.op.nn.conv2d(
            self._named(image, span), qop.constant(kernel), groups=int(channels)
        )
        shape = (batch, channels, outputs, columns)
        return self._named(relax.op.reshape(self._named(product, span), shape), span)

    def _exchanged(self, x: relax.Expr, span: tvm.ir.Span) -> relax.Var:
        rank = len(x.ty.shape.values)
        axes = [*range(rank - 2), rank - 1, rank - 2]
        return self._named(relax.op.permute_dims(x, axes), span)

    def _named(self, expr: relax.Call, span: tvm.ir.Span) -> relax.Var:
        return self.emit(relax.Call(expr.op, expr.args, expr.attrs, expr.ty_args, span))


def _exchanged_constant(expr: relax.Expr) -> relax.Expr:
    array = qop.constant_array(expr)
    if array is None or array.size == 1:
        return expr
    return qop.constant(array[:, None] if array.ndim == 1 else array.swapaxes(-1, -2))


def _extends(extents: list[Any], channels: int) -> bool:
    """Whether a shape is known and has so many channels."""
    known = all(isinstance(extent, tvm.tirx.IntImm) for extent in extents)
    return known and int(extents[0]) == channels


@tvm.ir.transform.module_pass(opt_level=0, name="ArrangeMatmuls")
class ArrangeMatmuls:
    """Make layers of products with constants (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with constants on the right."""
        return _Arranger(module).rewrite()
