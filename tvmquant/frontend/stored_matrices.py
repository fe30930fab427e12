"""Products with matrices that the file stores as integers, in the forms that have integer kernels.

``ArrangeMatmuls`` brings the constant of a product to the right, as one matrix, or as the weight of
a grouped convolution. A quantized constant is known by its axes, so that here its product is
written in these forms at once::

    W (M, K) @ x (N, ..., K, L)            ->  t(t(x) @ t(W))
    W (B, M, K) @ x (N, B, K, L)           ->  conv2d(x as (N, B * K, 1, L), W, groups=B)
    x (N, B, L, K) @ W (B, K, M)           ->  t of the same of t(x), t(W)

``t`` exchanges the last two axes.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Array


def stored_product(ctx: Context) -> relax.Var | None:
    """Return the product of the current node, a MatMul of a tensor and a constant.

    Returns
    -------
    relax.Var, or None where its constant is not stored as integers, or has none of the forms
    """
    index = 0 if ctx.is_constant(0) else 1
    if ctx.is_constant(1 - index) or ctx.node.inputs[index] not in ctx.stored:
        return None
    x, weight = ctx.tensor(1 - index), ctx.weight(index)
    rank = len(ctx.shape(x))
    while weight.ndim > 2 and weight.shape[0] == 1 and weight.ndim <= rank:
        weight = weight[0]
    if rank < 3 or weight.ndim not in (2, 3):
        return None
    if weight.ndim == 3:
        return _grouped(ctx, index, x, weight)
    matrix = ctx.embed(weight.T if index == 0 else weight)
    right = ctx.layer_weight(index, matrix, 1, arranged=_exchanged if index == 0 else None)
    if not isinstance(right, relax.Var):
        return None
    if index == 1:
        return ctx.emit(relax.op.matmul(x, right))
    return _exchange(ctx, ctx.emit(relax.op.matmul(_exchange(ctx, x), right)))


def _grouped(ctx: Context, index: int, x: relax.Expr, weight: Array) -> relax.Var | None:
    """Multiply the matrix of each channel by one of its own, as a grouped convolution."""
    shape = ctx.shape(x)
    if len(shape) != 4 or shape[1] != weight.shape[0]:
        return None
    channels, outputs, inputs = weight.shape if index == 0 else weight.swapaxes(1, 2).shape
    kernel = weight if index == 0 else weight.swapaxes(1, 2)
    embedded = ctx.embed(kernel.reshape(channels * outputs, inputs, 1, 1))
    quantized = ctx.layer_weight(
        index, embedded, 0, groups=channels, arranged=_exchanged if index == 1 else None
    )
    if not isinstance(quantized, relax.Var):
        return None
    if index == 1:
        x = _exchange(ctx, x)
    batch, columns = ctx.shape(x)[0], ctx.shape(x)[3]
    image = ctx.reshape(x, (batch, channels * inputs, 1, columns))
    product = ctx.emit(relax.op.nn.conv2d(image, quantized, groups=channels))
    result = ctx.reshape(product, (batch, channels, outputs, columns))
    return result if index == 0 else _exchange(ctx, result)


def _exchange(ctx: Context, x: relax.Expr) -> relax.Var:
    rank = len(ctx.shape(x))
    return ctx.emit(relax.op.permute_dims(x, [*range(rank - 2), rank - 1, rank - 2]))


def _exchanged(array: Array) -> Array:
    return np.asarray(array.swapaxes(-1, -2))
