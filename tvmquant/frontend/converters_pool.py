"""Pooling and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Array, Batch, UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter
from tvmquant.frontend.windows import Window, output_extent, pad_for_ceil, read_window

# Of a pool of powers, each of whose taps is an operator of its own.
MAX_TAPS = 256


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


@converter("MaxPool")
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
    correction = None
    if node.integer("ceil_mode", 0):
        extended = pad_for_ceil(window, size)
        if with_pads and extended != window:
            correction = _uncounted(window, extended, size)
        window = extended
    if window.kernel == size and max(window.pads) == 0:
        return ctx.as_given(ctx.emit(relax.op.mean(data, [2, 3], True)), given)
    call = relax.op.nn.avg_pool2d(
        data, pool_size=window.kernel, count_include_pad=with_pads, **window.attributes()
    )
    result = ctx.emit(call)
    if correction is not None:
        result = ctx.emit(relax.op.multiply(result, ctx.embed(correction)))
    return ctx.as_given(result, given)


def _uncounted(window: Window, extended: Window, size: tuple[int, int]) -> Array:
    """Return the factor of each mean for what hangs over the padding, which ONNX does not count.

    Returns
    -------
    float32 array (1, 1, OH, OW)
        Elements of a window over those inside the padded input.
    """
    factors = []
    for axis in range(2):
        extent = output_extent(extended, size, axis, ceil=False)
        taps = np.arange(extent)[:, None] * window.strides[axis]
        taps = taps + np.arange(window.kernel[axis]) * window.dilations[axis]
        end = size[axis] + window.pads[axis] + window.pads[axis + 2]
        factors.append(window.kernel[axis] / (taps < end).sum(axis=1))
    scale: Array = np.outer(*factors)[None, None].astype(np.float32)
    return scale


@converter("LpPool", "GlobalLpPool")
def _convert_lp_pool(ctx: Context, node: Node) -> relax.Var:
    """Emit the root of the sum of powers over windows; padding adds nothing."""
    given = ctx.tensor(0)
    data = ctx.as_image(given)
    size = ctx.spatial(data)
    order = node.integer("p", 2)
    window = Window(size, (1, 1), (1, 1), (0, 0, 0, 0))
    if node.op_type == "LpPool":
        window = _read_pool_window(ctx, node, size)
        if node.integer("ceil_mode", 0):
            window = pad_for_ceil(window, size)
    if window.kernel == size and not any(window.pads):
        powers, axes = _power(ctx, data, order), [2, 3]
    else:
        powers, axes = _power(ctx, _taps(ctx, data, window), order), [1]
    total = ctx.emit(relax.op.sum(powers, axes, len(axes) > 1))
    return ctx.as_given(_root(ctx, total, order), given)


def _taps(ctx: Context, data: relax.Expr, window: Window) -> relax.Var:
    """Emit what each tap of a window reads, (N, taps, C, OH, OW); zeros beyond the border."""
    if math.prod(window.kernel) > MAX_TAPS:
        raise UnsupportedNodeError(
            f"its window {list(window.kernel)} has more than {MAX_TAPS} elements"
        )
    top, left, bottom, right = window.pads
    if any(window.pads):
        widths = [0, 0, 0, 0, top, bottom, left, right]
        data = ctx.emit(relax.op.nn.pad(data, widths, "constant", 0.0))
    size = ctx.spatial(data)
    unpadded = replace(window, pads=(0, 0, 0, 0))
    counts = [output_extent(unpadded, size, axis, ceil=False) for axis in range(2)]
    pieces = []
    for tap in np.ndindex(*window.kernel):
        begin = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        end = [b + (n - 1) * s + 1 for b, n, s in zip(begin, counts, window.strides, strict=True)]
        piece = relax.op.strided_slice(data, [2, 3], begin, end, [*window.strides])
        batch, channels = ctx.shape(data)[:2]
        pieces.append(ctx.reshape(ctx.emit(piece), (batch, 1, channels, *counts)))
    return pieces[0] if len(pieces) == 1 else ctx.emit(relax.op.concat(pieces, 1))


def _power(ctx: Context, data: relax.Expr, order: int) -> relax.Var:
    """Emit the power of the magnitude."""
    if order == 2:
        return ctx.emit(relax.op.multiply(data, data))
    magnitude = ctx.emit(relax.op.abs(data))
    exponent = relax.const(np.float32(order), "float32")
    return magnitude if order == 1 else ctx.emit(relax.op.power(magnitude, exponent))


def _root(ctx: Context, data: relax.Var, order: int) -> relax.Var:
    if order == 2:
        return ctx.emit(relax.op.sqrt(data))
    exponent = relax.const(np.float32(1 / order), "float32")
    return data if order == 1 else ctx.emit(relax.op.power(data, exponent))


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
    "ReduceProd": relax.op.prod,
    "ReduceL1": relax.op.sum,
    "ReduceL2": relax.op.sum,
    "ReduceLogSum": relax.op.sum,
    "ReduceLogSumExp": relax.op.sum,
    "ReduceSumSquare": relax.op.sum,
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
    result = _reduce(ctx, node.op_type, data, axes)
    if node.integer("keepdims", 1):
        return result
    kept = tuple(dim for axis, dim in enumerate(shape) if axis not in axes)
    return ctx.reshape(result, kept)


def _reduce(ctx: Context, kind: str, data: relax.Expr, axes: list[int]) -> relax.Var:
    """Emit a reduction that keeps its axes, with what stands before and behind its sum."""
    terms, largest = data, None
    if kind in ("ReduceL2", "ReduceSumSquare"):
        terms = ctx.emit(relax.op.multiply(data, data))
    elif kind == "ReduceL1":
        terms = ctx.emit(relax.op.abs(data))
    elif kind == "ReduceLogSumExp":  # shifted by the greatest, so that nothing overflows
        largest = ctx.emit(relax.op.max(data, axes, True))
        terms = ctx.emit(relax.op.exp(ctx.emit(relax.op.subtract(data, largest))))
    result = ctx.emit(_REDUCTIONS[kind](terms, axes, True))
    if kind == "ReduceL2":
        return ctx.emit(relax.op.sqrt(result))
    if kind in ("ReduceLogSum", "ReduceLogSumExp"):
        result = ctx.emit(relax.op.log(result))
    return result if largest is None else ctx.emit(relax.op.add(result, largest))


@converter("ArgMax", "ArgMin")
def _convert_arg(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), node.integer("axis", 0))
    ctx.keep_batch(shape, [axis])
    function = relax.op.argmax if node.op_type == "ArgMax" else relax.op.argmin
    keep = node.integer("keepdims", 1) == 1
    if not node.integer("select_last_index", 0):
        return ctx.emit(function(data, axis, keep))
    extent = shape[axis]
    if isinstance(extent, Batch):
        raise UnsupportedNodeError("it works along the batch axis")
    # the last of equals is the first from behind
    turned = ctx.emit(relax.op.flip(data, axis))
    last = ctx.embed(np.asarray(extent - 1, np.int64))
    return ctx.emit(relax.op.subtract(last, ctx.emit(function(turned, axis, keep))))
