"""Activations: smooth ones, those that ONNX defines by cases, those with slopes of their own."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.converters_math import clip
from tvmquant.frontend.dimensions import Batch, UnsupportedNodeError, broadcast_shapes, count, show
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter

INFINITY = float("inf")


def _scalar(value: float) -> relax.Expr:
    return relax.const(np.float32(value), "float32")


@converter("LeakyRelu")
def _convert_leaky_relu(ctx: Context, node: Node) -> relax.Var:
    return ctx.emit(relax.op.nn.leakyrelu(ctx.tensor(0), node.number("alpha", 0.01)))


def _hard_sigmoid(ctx: Context, data: relax.Expr, alpha: float, beta: float) -> relax.Var:
    sloped = ctx.emit(relax.op.multiply(data, _scalar(alpha)))
    shifted = ctx.emit(relax.op.add(sloped, _scalar(beta)))
    return clip(ctx, shifted, 0.0, 1.0)


@converter("HardSigmoid")
def _convert_hard_sigmoid(ctx: Context, node: Node) -> relax.Var:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return _hard_sigmoid(ctx, ctx.tensor(0), alpha, beta)


@converter("HardSwish")
def _convert_hard_swish(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    gate = _hard_sigmoid(ctx, data, 1.0 / 6.0, 0.5)
    return ctx.emit(relax.op.multiply(data, gate))


@converter("Gelu")
def _convert_gelu(ctx: Context, node: Node) -> relax.Var:
    if node.text("approximate", "none") == "tanh":
        return ctx.emit(relax.op.nn.gelu_tanh(ctx.tensor(0)))
    return ctx.emit(relax.op.nn.gelu(ctx.tensor(0)))


@converter("Swish")
def _convert_swish(ctx: Context, node: Node) -> relax.Var:
    data, alpha = ctx.tensor(0), node.number("alpha", 1.0)
    if alpha == 1.0:
        return ctx.emit(relax.op.nn.silu(data))
    scaled = ctx.emit(relax.op.multiply(data, _scalar(alpha)))
    return ctx.emit(relax.op.multiply(data, ctx.emit(relax.op.sigmoid(scaled))))


def _softplus(ctx: Context, data: relax.Expr) -> relax.Var:
    """Emit ``max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    magnitude = ctx.emit(relax.op.abs(data))
    power = ctx.emit(relax.op.exp(ctx.emit(relax.op.negative(magnitude))))
    tail = ctx.emit(relax.op.log(ctx.emit(relax.op.add(power, _scalar(1.0)))))
    return ctx.emit(relax.op.add(ctx.emit(relax.op.nn.relu(data)), tail))


@converter("Softplus")
def _convert_softplus(ctx: Context, node: Node) -> relax.Var:
    return _softplus(ctx, ctx.tensor(0))


@converter("Mish")
def _convert_mish(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    gate = ctx.emit(relax.op.tanh(_softplus(ctx, data)))
    return ctx.emit(relax.op.multiply(data, gate))


@converter("Softsign")
def _convert_softsign(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    magnitude = ctx.emit(relax.op.abs(data))
    return ctx.emit(relax.op.divide(data, ctx.emit(relax.op.add(magnitude, _scalar(1.0)))))


@converter("Elu", "Selu", "Celu")
def _convert_elu(ctx: Context, node: Node) -> relax.Var:
    """Emit ``gamma * (relu(x) + alpha * (exp(min(x, 0) / beta) - 1))``."""
    alpha, beta, gamma = node.number("alpha", 1.0), 1.0, 1.0
    if node.op_type == "Selu":
        alpha = node.number("alpha", 1.6732632423543772)
        gamma = node.number("gamma", 1.0507009873554805)
    elif node.op_type == "Celu":
        beta = alpha
    data = ctx.tensor(0)
    negative = ctx.emit(relax.op.clip(data, -INFINITY, 0.0))
    if beta != 1.0:
        negative = ctx.emit(relax.op.multiply(negative, _scalar(1.0 / beta)))
    power = ctx.emit(relax.op.exp(negative))
    tail = ctx.emit(relax.op.multiply(ctx.emit(relax.op.add(power, _scalar(-1.0))), _scalar(alpha)))
    total = ctx.emit(relax.op.add(ctx.emit(relax.op.nn.relu(data)), tail))
    return total if gamma == 1.0 else ctx.emit(relax.op.multiply(total, _scalar(gamma)))


@converter("PRelu")
def _convert_prelu(ctx: Context, node: Node) -> relax.Var:
    """Emit ``leakyrelu`` for one slope, ``prelu`` for one per channel, else a sum of both sides."""
    data, slope = ctx.tensor(0), ctx.weight(1)
    shape = ctx.shape(data)
    if slope.size == 1:
        return ctx.emit(relax.op.nn.leakyrelu(data, float(slope.item())))
    if broadcast_shapes(shape, slope.shape) != shape:
        raise UnsupportedNodeError(f"its slope has shape {slope.shape}, its input {show(shape)}")
    full = (1,) * (len(shape) - slope.ndim) + slope.shape
    if len(shape) >= 2 and full[1] == shape[1] and count(full) == full[1]:
        return ctx.emit(relax.op.nn.prelu(data, ctx.embed(slope.reshape(-1)), 1))
    negative = ctx.emit(relax.op.clip(data, -INFINITY, 0.0))
    sloped = ctx.emit(relax.op.multiply(negative, ctx.embed(slope)))
    return ctx.emit(relax.op.add(ctx.emit(relax.op.nn.relu(data)), sloped))


@converter("ThresholdedRelu")
def _convert_thresholded_relu(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    above = ctx.emit(relax.op.greater(data, _scalar(node.number("alpha", 1.0))))
    return ctx.emit(relax.op.where(above, data, _scalar(0.0)))


@converter("Shrink")
def _convert_shrink(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    limit, bias = node.number("lambd", 0.5), node.number("bias", 0.0)
    above = ctx.emit(relax.op.greater(data, _scalar(limit)))
    below = ctx.emit(relax.op.less(data, _scalar(-limit)))
    lowered = ctx.emit(relax.op.add(data, _scalar(-bias)))
    raised = ctx.emit(relax.op.add(data, _scalar(bias)))
    rest = ctx.emit(relax.op.where(below, raised, _scalar(0.0)))
    return ctx.emit(relax.op.where(above, lowered, rest))


@converter("Hardmax")
def _convert_hardmax(ctx: Context, node: Node) -> relax.Var:
    """Emit 1 where the first of the greatest lies; up to opset 12 over all axes from ``axis``."""
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), node.integer("axis", -1 if node.opset >= 13 else 1))
    ctx.keep_batch(shape, [axis])
    rows = data
    if node.opset < 13:
        rows = ctx.reshape(data, (count(shape[:axis]), count(shape[axis:])))
        axis = 1
    extent = ctx.shape(rows)[axis]
    if isinstance(extent, Batch):
        raise UnsupportedNodeError("it works along the batch axis")
    positions = np.arange(extent, dtype=np.int64)
    positions = positions.reshape([-1 if i == axis else 1 for i in range(len(ctx.shape(rows)))])
    greatest = ctx.emit(relax.op.argmax(rows, axis, True))
    chosen = ctx.emit(relax.op.equal(greatest, ctx.embed(positions)))
    return ctx.reshape(ctx.emit(relax.op.astype(chosen, "float32")), shape)


@converter("Trilu")
def _convert_trilu(ctx: Context, node: Node) -> relax.Var:
    """Emit a product with zeros and ones; of numbers that are no floats a choice."""
    data = ctx.tensor(0)
    rows, columns = ctx.shape(data)[-2:]
    if isinstance(rows, Batch) or isinstance(columns, Batch):
        raise UnsupportedNodeError("it works along the batch axis")
    diagonal = ctx.optional_constant(1)
    offset = 0 if diagonal is None else int(diagonal.item())
    triangle = np.triu if node.integer("upper", 1) else np.tril
    mask = triangle(np.ones((rows, columns), bool), offset)
    dtype = str(data.ty.dtype)
    if dtype == "float32":
        return ctx.emit(relax.op.multiply(data, ctx.embed(mask.astype(np.float32))))
    return ctx.emit(relax.op.where(ctx.embed(mask), data, ctx.embed(np.zeros((), dtype))))
