"""Activations that ONNX defines by cases, and those with slopes of their own."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Batch, UnsupportedNodeError, broadcast_shapes, count, show
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter

INFINITY = float("inf")


def _scalar(value: float) -> relax.Expr:
    return relax.const(np.float32(value), "float32")


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
    """Emit a product with zeros and ones."""
    data = ctx.tensor(0)
    rows, columns = ctx.shape(data)[-2:]
    if isinstance(rows, Batch) or isinstance(columns, Batch):
        raise UnsupportedNodeError("it works along the batch axis")
    diagonal = ctx.optional_constant(1)
    offset = 0 if diagonal is None else int(diagonal.item())
    triangle = np.triu if node.integer("upper", 1) else np.tril
    mask = triangle(np.ones((rows, columns), np.float32), offset)
    return ctx.emit(relax.op.multiply(data, ctx.embed(mask)))
