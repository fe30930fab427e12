"""Elements and slices that are chosen, or replaced, by their indices."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.converters_layout import slice_axis
from tvmquant.frontend.dimensions import Batch, Shape, UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter


@converter("Gather")
def _convert_gather(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), node.integer("axis", 0))
    if ctx.is_constant(0) and not ctx.is_constant(1):
        # as ONNX counts: -1 is the last one; beyond, nothing outside of the table is read
        return ctx.emit(relax.op.take(data, ctx.tensor(1), axis, mode="wrap"))
    indices = ctx.weight(1)
    extent = shape[axis]
    if isinstance(extent, Batch):
        raise UnsupportedNodeError("it gathers along the batch axis")
    if indices.min() < -extent or indices.max() >= extent:
        raise UnsupportedNodeError(f"its indices are not all below {extent}")
    flat = np.where(indices < 0, indices + extent, indices).ravel()
    result: Shape = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
    if np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size)):
        start = int(flat[0])
        return ctx.reshape(slice_axis(ctx, data, axis, start, start + flat.size, 1), result)
    # mode="clip" spares TVM's warning about indices out of range, of which there are none
    index = ctx.embed(flat.astype(np.int64))
    taken = ctx.emit(relax.op.take(data, index, axis, mode="clip"))
    return ctx.reshape(taken, result)
