"""Sums and products of all elements before, CumSum and CumProd."""

from __future__ import annotations

from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Batch, UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter

_TYPES = ("float32", "int32", "int64")


@converter("CumSum", "CumProd")
def _convert_cumulative(ctx: Context, node: Node) -> relax.Var:
    """Emit the operator; what runs backwards is turned before and after."""
    data, axes = ctx.tensor(0), ctx.weight(1)
    dtype = str(data.ty.dtype)
    if dtype not in _TYPES:
        raise UnsupportedNodeError(
            f"its operand has type {dtype}, expected one of {', '.join(_TYPES)}; cast it before"
        )
    if axes.size != 1:
        raise UnsupportedNodeError(f"its axis has shape {axes.shape}, expected one number")
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), int(axes.item()))
    if isinstance(shape[axis], Batch):
        raise UnsupportedNodeError("it works along the batch axis")
    backwards = node.integer("reverse", 0) == 1
    if backwards:
        data = ctx.emit(relax.op.flip(data, axis))
    function = relax.op.cumsum if node.op_type == "CumSum" else relax.op.cumprod
    result = ctx.emit(function(data, axis, dtype, node.integer("exclusive", 0) == 1))
    return ctx.emit(relax.op.flip(result, axis)) if backwards else result
