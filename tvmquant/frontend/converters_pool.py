"""Pooling and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter
from tvmquant.frontend.windows import Window, pad_for_ceil, read_window


def _read_pool_window(ctx: Context, node: Node, size: tuple[int, int]) -> Window:
    kernel = node.integers("kernel_shape")
    rank = len(ctx.shape(ctx.tensor(0))) - 2
    if len(kernel) != rank:
        raise UnsupportedNodeError(f"its window is {len(kernel)}-D, its input has {rank} such axes")
    window = read_window(node, tuple(kernel), size)
    if any(pad >= window.reach(side % 2) for side, pad in enumerate(window.pads)):
        raise UnsupportedNodeError(
            f"its pads {list(window.pads)} are not smaller than its window {list(window.kernel)}"
        )
    return window


def _check_max_pool(node: Node) -> str | None:
    if len([name for name in node.outputs if name]) > 1:
        return "its output of indices is used"
    return None


@converter("MaxPool", check=_check_max_pool)
def _convert_max_pool(ctx: Context, node: Node) -> relax.Var:
    given = ctx.tensor(0)
    data = ctx.as_image(given)
    size = ctx.spatial(data)
    window = _read_pool_window(ctx, node, size)
    if node.integer("ceil_mode", 0):
        window = pad_for_ceil(window, size)
    call = relax.op.nn.max_pool2d(data, pool_size=window.kernel, **window.attributes())
    return ctx.as_given(ctx.emit(call), given)


@converter("AveragePool")
def _convert_average_pool(ctx: Context, node: Node) -> relax.Var:
    given = ctx.tensor(0)
    data = ctx.as_image(given)
    size = ctx.spatial(data)
    window = _read_pool_window(ctx, node, size)
    with_pads = node.integer("count_include_pad", 0) == 1 and max(window.pads) > 0
    if node.integer("ceil_mode", 0):
        extended = pad_for_ceil(window, size)
        if with_pads and extended != window:
            raise UnsupportedNodeError(
                "count_include_pad=1 with a last window that hangs over the end (ceil_mode=1) "
                "divides by a count that TVM does not know"
            )
        window = extended
    if max(window.dilations) > 1:
        raise UnsupportedNodeError(f"its dilations are {window.dilations}, expected 1")
    if window.kernel == size and max(window.pads) == 0:
        return ctx.as_given(ctx.emit(relax.op.mean(data, [2, 3], True)), given)
    call = relax.op.nn.avg_pool2d(
        data, pool_size=window.kernel, count_include_pad=with_pads, **window.attributes()
    )
    return ctx.as_given(ctx.emit(call), given)


@converter("GlobalAveragePool")
def _convert_global_average_pool(ctx: Context, node: Node) -> relax.Var:
    data = ctx.as_image(ctx.tensor(0))
    ctx.spatial(data)
    return ctx.as_given(ctx.emit(relax.op.mean(data, [2, 3], True)), ctx.tensor(0))


@converter("GlobalMaxPool")
def _convert_global_max_pool(ctx: Context, node: Node) -> relax.Var:
    data = ctx.as_image(ctx.tensor(0))
    ctx.spatial(data)
    return ctx.as_given(ctx.emit(relax.op.max(data, [2, 3], True)), ctx.tensor(0))


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": relax.op.mean,
    "ReduceSum": relax.op.sum,
    "ReduceMax": relax.op.max,
    "ReduceMin": relax.op.min,
}


@converter(*_REDUCTIONS)
def _convert_reduction(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    given = ctx.integers(1, "axes")
    if not given and node.integer("noop_with_empty_axes", 0):
        return data
    axes = sorted(ctx.axis(len(shape), axis) for axis in given or range(len(shape)))
    ctx.keep_batch(shape, axes)
    result = ctx.emit(_REDUCTIONS[node.op_type](data, axes, True))
    if node.integer("keepdims", 1):
        return result
    kept = tuple(dim for axis, dim in enumerate(shape) if axis not in axes)
    return ctx.reshape(result, kept)


@converter("ArgMax", "ArgMin")
def _convert_arg(ctx: Context, node: Node) -> relax.Var:
    if node.integer("select_last_index", 0):
        raise UnsupportedNodeError("select_last_index=1 is not supported")
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), node.integer("axis", 0))
    ctx.keep_batch(shape, [axis])
    function = relax.op.argmax if node.op_type == "ArgMax" else relax.op.argmin
    return ctx.emit(function(data, axis, node.integer("keepdims", 1) == 1))
