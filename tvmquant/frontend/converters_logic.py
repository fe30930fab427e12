"""Comparisons, logic, and selection by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import UnsupportedNodeError, broadcast_shapes
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter

_COMPARISONS: dict[str, Callable[..., Any]] = {
    "Equal": relax.op.equal,
    "Greater": relax.op.greater,
    "GreaterOrEqual": relax.op.greater_equal,
    "Less": relax.op.less,
    "LessOrEqual": relax.op.less_equal,
}
_LOGIC: dict[str, Callable[..., Any]] = {
    "And": relax.op.logical_and,
    "Or": relax.op.logical_or,
    "Xor": relax.op.logical_xor,
}


@converter(*_COMPARISONS, *_LOGIC)
def _convert_comparison(ctx: Context, node: Node) -> relax.Var:
    operands = _operands(ctx, node)
    types = {str(operand.ty.dtype) for operand in operands}
    if len(types) > 1 or (node.op_type in _LOGIC and types != {"bool"}):
        raise UnsupportedNodeError(f"its operands have types {', '.join(sorted(types))}")
    function = {**_COMPARISONS, **_LOGIC}[node.op_type]
    return ctx.emit(function(*operands))


@converter("Not")
def _convert_not(ctx: Context, node: Node) -> relax.Var:
    return ctx.emit(relax.op.logical_not(ctx.tensor(0)))


@converter("IsNaN")
def _convert_is_nan(ctx: Context, node: Node) -> relax.Var:
    return ctx.emit(relax.op.isnan(ctx.tensor(0)))


@converter("IsInf")
def _convert_is_inf(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    above, below = (node.integer(f"detect_{sign}", 1) for sign in ("positive", "negative"))
    if above and below:
        return ctx.emit(relax.op.isinf(data))
    infinity = np.float32(np.inf if above else -np.inf)
    function = relax.op.equal if above or below else relax.op.less  # nothing is less
    return ctx.emit(function(data, ctx.embed(np.asarray(infinity))))


@converter("Where")
def _convert_where(ctx: Context, node: Node) -> relax.Expr:
    known = ctx.value(0)
    if isinstance(known, np.ndarray) and (np.all(known) or not np.any(known)):
        return _choose(ctx, 1 if np.all(known) else 2)
    condition, *branches = _operands(ctx, node)
    types = {str(branch.ty.dtype) for branch in branches}
    if len(types) > 1:
        raise UnsupportedNodeError(f"its branches have types {', '.join(sorted(types))}")
    return ctx.emit(relax.op.where(condition, *branches))


def _choose(ctx: Context, index: int) -> relax.Expr:
    """Return one branch of a choice that is the same everywhere, in the shape of the result."""
    branches = _operands(ctx, ctx.node)
    chosen, shape = branches[index], broadcast_shapes(*(ctx.shape(each) for each in branches))
    if ctx.shape(chosen) == shape:
        return chosen
    return ctx.emit(relax.op.broadcast_to(chosen, ctx.expression(shape)))


@converter("OneHot")
def _convert_one_hot(ctx: Context, node: Node) -> relax.Var:
    """Compare each index with the positions along a new axis; negative ones count from the end."""
    indices = ctx.tensor(0)
    depth, values = int(ctx.weight(1).item()), ctx.weight(2)
    shape = ctx.shape(indices)
    axis = ctx.axis(len(shape) + 1, node.integer("axis", -1))
    dtype = str(indices.ty.dtype)
    along = [-1 if i == axis else 1 for i in range(len(shape) + 1)]
    positions = np.arange(depth, dtype=dtype).reshape(along)
    spread = ctx.reshape(indices, (*shape[:axis], 1, *shape[axis:]))
    found = ctx.emit(relax.op.equal(spread, ctx.embed(positions)))
    if not dtype.startswith("uint"):
        from_end = ctx.emit(relax.op.equal(spread, ctx.embed(positions - depth)))
        found = ctx.emit(relax.op.logical_or(found, from_end))
    if values.dtype == np.float32 and values.tolist() == [0.0, 1.0]:
        return ctx.emit(relax.op.astype(found, "float32"))
    off, on = (ctx.embed(values[i : i + 1].reshape(())) for i in range(2))
    return ctx.emit(relax.op.where(found, on, off))


def _operands(ctx: Context, node: Node) -> list[relax.Expr]:
    """Return the inputs of a node; a mask may hold infinities, and numbers may be infinite."""
    operands = []
    for index in range(len(node.inputs)):
        array = ctx.value(index)
        known = isinstance(array, np.ndarray) and array.dtype != object and array.size > 0
        constant = ctx.optional_constant(index) if known else None
        operands.append(ctx.tensor(index) if constant is None else ctx.embed(constant))
    broadcast_shapes(*(ctx.shape(operand) for operand in operands))
    return operands
