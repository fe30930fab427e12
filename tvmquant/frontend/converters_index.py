"""Elements and slices that are chosen, or replaced, by their indices."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.converters_layout import slice_axis
from tvmquant.frontend.dimensions import Batch, Shape, UnsupportedNodeError, show
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


@converter("GatherElements")
def _convert_gather_elements(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    axis = _element_axis(ctx, node, data, 1)
    indices = _indices(ctx, 1, ctx.shape(data)[axis : axis + 1])
    return ctx.emit(relax.op.gather_elements(data, indices, axis))


@converter("GatherND")
def _convert_gather_nd(ctx: Context, node: Node) -> relax.Var:
    data, leading = ctx.tensor(0), node.integer("batch_dims", 0)
    indices = _indices(ctx, 1, ctx.shape(data)[leading : leading + _depth(ctx, 1)])
    if ctx.shape(indices)[:leading] != ctx.shape(data)[:leading]:
        raise UnsupportedNodeError(
            f"its indices have shape {show(ctx.shape(indices))}, its data "
            f"{show(ctx.shape(data))}, which differ along the first {leading} axes"
        )
    return ctx.emit(relax.op.gather_nd(data, indices, leading))


# Relax's names of ONNX's reductions.
_REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


@converter("Scatter", "ScatterElements")
def _convert_scatter_elements(ctx: Context, node: Node) -> relax.Var:
    data, updates = ctx.tensor(0), ctx.tensor(2)
    axis = _element_axis(ctx, node, data, 1, 2)
    indices = _indices(ctx, 1, ctx.shape(data)[axis : axis + 1])
    reduction = _REDUCTIONS[node.text("reduction", "none")]
    return ctx.emit(relax.op.scatter_elements(data, indices, updates, axis, reduction))


@converter("ScatterND")
def _convert_scatter_nd(ctx: Context, node: Node) -> relax.Var:
    data, updates = ctx.tensor(0), ctx.tensor(2)
    indices = _indices(ctx, 1, ctx.shape(data)[: _depth(ctx, 1)])
    reduction = _REDUCTIONS[node.text("reduction", "none")]
    return ctx.emit(relax.op.scatter_nd(data, indices, updates, reduction))


def _element_axis(ctx: Context, node: Node, data: relax.Expr, *others: int) -> int:
    """Return the axis that single elements are chosen along.

    Raises
    ------
    UnsupportedNodeError
        If it is the batch's, or the batch is not in front of the data and the other inputs alike.
    """
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), node.integer("axis", 0))
    shapes = [shape, *(ctx.shape(ctx.tensor(index)) for index in others)]
    if {len(each) for each in shapes} != {len(shape)}:
        raise UnsupportedNodeError(f"its inputs have shapes {', '.join(map(show, shapes))}")
    if (
        axis > 0
        and len({each[0] for each in shapes if isinstance(each[0], Batch)})
        and any(not isinstance(each[0], Batch) for each in shapes)
    ):
        raise UnsupportedNodeError("it chooses elements of some samples of the batch")
    return axis


def _depth(ctx: Context, index: int) -> int:
    """Return how many axes of the data an index vector counts along."""
    depth = ctx.shape(ctx.tensor(index))[-1:]
    if not depth or isinstance(depth[0], Batch):
        raise UnsupportedNodeError(f"its indices have shape {show(ctx.shape(ctx.tensor(index)))}")
    return depth[0]


def _indices(ctx: Context, index: int, extents: Shape) -> relax.Expr:
    """Return indices below the extents that they count along; negative ones count from the end.

    Those computed at run time wrap around, so that nothing outside of the data is read.
    """
    if any(isinstance(extent, Batch) for extent in extents):
        raise UnsupportedNodeError("it chooses along the batch axis")
    limits = np.array(extents, np.int64)
    if not ctx.is_constant(index):
        tensor = ctx.tensor(index)
        if str(tensor.ty.dtype) != "int64":
            tensor = ctx.emit(relax.op.astype(tensor, "int64"))
        return ctx.emit(relax.op.floor_mod(tensor, ctx.embed(limits)))
    constant = ctx.weight(index).astype(np.int64)
    if np.any(constant < -limits) or np.any(constant >= limits):
        raise UnsupportedNodeError(f"its indices are not all below {show(extents)}")
    return ctx.embed(np.where(constant < 0, constant + limits, constant))
