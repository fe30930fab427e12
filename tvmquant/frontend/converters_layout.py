"""Operators that move values without computing: reshape, transpose, slice, concat, pad."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context, Value
from tvmquant.frontend.dimensions import (
    Batch,
    Dim,
    UnsupportedNodeError,
    as_array,
    broadcast_shapes,
    count,
    resolve_reshape,
    show,
)
from tvmquant.frontend.node import Node
from tvmquant.frontend.quantized_tensor import QuantizedTensor
from tvmquant.frontend.registry import converter
from tvmquant.frontend.value_types import shape_of


@converter("Shape")
def _convert_shape(ctx: Context, node: Node) -> Value:
    shape = ctx.shape(ctx.tensor(0))
    end = node.attributes.get("end")
    return as_array(shape[node.integer("start", 0) : None if end is None else int(end)])


@converter("Size")
def _convert_size(ctx: Context, node: Node) -> Value:
    return as_array([count(ctx.shape(ctx.tensor(0)))]).reshape(())


def _dimensions(ctx: Context, index: int) -> list[Dim]:
    """Return a shape input, of which some dimensions may depend on the batch."""
    value = ctx.value(index)
    if not isinstance(value, np.ndarray):
        raise UnsupportedNodeError("its shape input is computed from the data")
    return [dim if isinstance(dim, Batch) else int(dim) for dim in value.ravel().tolist()]


@converter("ConstantOfShape")
def _convert_constant_of_shape(ctx: Context, node: Node) -> relax.Var:
    fill = np.asarray(node.attributes.get("value", np.zeros(1, np.float32)))
    shape = ctx.expression(_dimensions(ctx, 0))
    return ctx.emit(relax.op.full(shape, ctx.embed(fill.reshape(())), str(fill.dtype)))


@converter("Reshape")
def _convert_reshape(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    shape, target = ctx.shape(data), _dimensions(ctx, 1)
    leads = bool(shape) and isinstance(shape[0], Batch)
    if leads and target and ctx.assumed_batch is not None and target[0] == ctx.assumed_batch:
        target[0] = shape[0]
    allow_zero = node.integer("allowzero", 0) == 1
    return ctx.reshape(data, resolve_reshape(shape, target, allow_zero=allow_zero))


@converter("Flatten")
def _convert_flatten(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    axis = node.integer("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    if axis == 0:
        ctx.keep_batch(shape, [0])
    return ctx.reshape(data, (count(shape[:axis]), count(shape[axis:])))


@converter("Squeeze")
def _convert_squeeze(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    given = ctx.integers(1, "axes")
    if given is None:
        axes = [axis for axis, dim in enumerate(shape) if dim == 1]
        ctx.keep_batch(shape, range(len(shape)))
    else:
        axes = [ctx.axis(len(shape), axis) for axis in given]
    if any(shape[axis] != 1 for axis in axes):
        raise UnsupportedNodeError(f"it squeezes axes {axes} of a tensor of shape {show(shape)}")
    return ctx.reshape(data, tuple(dim for axis, dim in enumerate(shape) if axis not in axes))


@converter("Unsqueeze")
def _convert_unsqueeze(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    given = ctx.integers(1, "axes") or []
    rank = len(shape) + len(given)
    axes = {ctx.axis(rank, axis) for axis in given}
    dims = iter(shape)
    return ctx.reshape(data, tuple(1 if axis in axes else next(dims) for axis in range(rank)))


@converter("Transpose")
def _convert_transpose(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    axes = range(len(ctx.shape(data)))
    order = node.integers("perm", list(reversed(axes)))
    if sorted(order) != list(axes):
        raise UnsupportedNodeError(
            f"perm={order} is no order of the axes of a {len(axes)}-D tensor"
        )
    return ctx.emit(relax.op.permute_dims(data, order))


@converter("Concat")
def _convert_concat(ctx: Context, node: Node) -> relax.Expr:
    every = [shape_of(ctx, index) for index in range(len(node.inputs))]
    axis = ctx.axis(len(every[0]), node.integer("axis", 1))
    # parts without elements are those that a split left over
    used = [index for index, shape in enumerate(every) if shape[axis] != 0]
    tensors = [ctx.tensor(index) for index in used]
    shapes = [every[index] for index in used]
    if not tensors:
        raise UnsupportedNodeError("it joins tensors without elements")
    rest = [(*shape[:axis], 1, *shape[axis + 1 :]) for shape in shapes]
    if ctx.assumed_batch is not None and axis != 0:
        whole = broadcast_shapes(*rest)
        for index, shape in enumerate(shapes):
            wanted = (*whole[:axis], shape[axis], *whole[axis + 1 :])
            if shape != wanted:
                expanded = relax.op.broadcast_to(tensors[index], ctx.expression(wanted))
                tensors[index] = ctx.emit(expanded)
    elif any(shape != rest[0] for shape in rest):
        raise UnsupportedNodeError(f"it joins tensors of shapes {', '.join(map(show, shapes))}")
    if axis == 0 and any(isinstance(shape[0], Batch) for shape in shapes):
        raise UnsupportedNodeError("it joins tensors along the batch axis")
    return tensors[0] if len(tensors) == 1 else ctx.emit(relax.op.concat(tensors, axis))


@converter("Split")
def _convert_split(ctx: Context, node: Node) -> tuple[relax.Var, ...]:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), node.integer("axis", 0))
    extent = shape[axis]
    if isinstance(extent, Batch):
        raise UnsupportedNodeError("it splits along the batch axis")
    sizes = ctx.integers(1, "split")
    if sizes is None:
        parts = len(node.outputs)
        chunk = -(-extent // parts)
        sizes = [min(chunk, extent - chunk * part) for part in range(parts)]
    if sum(sizes) != extent or min(sizes) < 0:
        raise UnsupportedNodeError(f"it splits {extent} elements into parts of {sizes}")
    ends = accumulate(sizes)
    return tuple(
        _part(ctx, data, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)
    )


def _part(ctx: Context, data: relax.Expr, axis: int, start: int, end: int) -> relax.Expr:
    """Return a part of a split: a slice, so that later passes see tensors, never a tuple of them.

    One without elements is for a concatenation, which leaves it out.
    """
    if start < end:
        return slice_axis(ctx, data, axis, start, end, 1)
    shape = ctx.shape(data)
    empty = ctx.expression((*shape[:axis], 0, *shape[axis + 1 :]))
    dtype = str(data.ty.dtype)
    return ctx.emit(relax.op.full(empty, ctx.embed(np.zeros((), dtype)), dtype))


# The end of a slice that takes all there is, as TensorFlow's exporter writes it; others end beyond.
ENDLESS = 10**9


def slice_axis(ctx: Context, data: relax.Expr, axis: int, start: int, stop: int, step: int) -> Any:
    """Emit a slice of one axis, as Python counts; nothing where it takes all."""
    extent = ctx.shape(data)[axis]
    if (start, step) == (0, 1) and (
        stop == extent or (isinstance(extent, Batch) and stop >= ENDLESS)
    ):
        return data
    if isinstance(extent, Batch):
        raise UnsupportedNodeError("it slices along the batch axis")
    if step == 0:
        raise UnsupportedNodeError("it slices with step 0")
    begin, end, _ = slice(start, stop, step).indices(extent)
    if (end - begin) * step <= 0:
        raise UnsupportedNodeError(f"its slice {start}:{stop} of {extent} elements is empty")
    if end < 0:  # backwards down to the first element; -1 would be the last one
        end = -extent - 1
    if (begin, end, step) == (0, extent, 1):
        return data
    return ctx.emit(relax.op.strided_slice(data, [axis], [begin], [end], [step]))


@converter("Slice")
def _convert_slice(ctx: Context, node: Node) -> relax.Expr:
    data = ctx.tensor(0)
    rank = len(ctx.shape(data))
    starts, ends = ctx.integers(1, "starts"), ctx.integers(2, "ends")
    axes, steps = ctx.integers(3, "axes"), ctx.integers(4, "steps")
    if starts is None or ends is None:
        raise UnsupportedNodeError("its starts and ends are missing")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        data = slice_axis(ctx, data, ctx.axis(rank, axis), start, stop, step)
    return data


@converter("Expand")
def _convert_expand(ctx: Context, node: Node) -> relax.Expr:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    wanted = broadcast_shapes(shape, tuple(_dimensions(ctx, 1)))
    if shape == wanted:
        return data
    return ctx.emit(relax.op.broadcast_to(data, ctx.expression(wanted)))


@converter("Tile")
def _convert_tile(ctx: Context, node: Node) -> relax.Var:
    data, repeats = ctx.tensor(0), ctx.integers(1, "repeats") or []
    shape = ctx.shape(data)
    if len(repeats) != len(shape):
        raise UnsupportedNodeError(f"it repeats {len(repeats)} axes of a {len(shape)}-D tensor")
    ctx.keep_batch(shape, [axis for axis, times in enumerate(repeats) if times != 1])
    return ctx.emit(relax.op.tile(data, repeats))


# Relax's names of ONNX's modes
_PAD_MODES = {
    "constant": "constant",
    "reflect": "reflect",
    "edge": "replicate",
    "wrap": "circular",
}


@converter("Pad")
def _convert_pad(ctx: Context, node: Node) -> Value:
    held = ctx.value(0)
    if not isinstance(held, QuantizedTensor) or held.axis >= 0:
        return _padded(ctx, node, ctx.tensor(0))
    # integers are what their real values are known by, and so is what stands beside them
    return replace(held, real=_padded(ctx, node, held.real, held))


def _padded(
    ctx: Context, node: Node, data: relax.Expr, held: QuantizedTensor | None = None
) -> relax.Expr:
    shape = ctx.shape(data)
    mode = node.text("mode", "constant")
    pads = ctx.integers(1, "pads")
    if pads is None:
        raise UnsupportedNodeError("its pads are missing")
    fill = ctx.optional_constant(2)
    value = node.number("value", 0.0) if fill is None or fill.size == 0 else float(fill.item())
    if held is not None:
        value = (value - held.zero_point) * float(held.scale[0])
    given = ctx.integers(3, "axes")
    axes = list(range(len(shape))) if given is None else [ctx.axis(len(shape), a) for a in given]
    widths = [0] * (2 * len(shape))
    for position, axis in enumerate(axes):
        widths[2 * axis], widths[2 * axis + 1] = pads[position], pads[position + len(axes)]
    if any(isinstance(shape[i // 2], Batch) and width for i, width in enumerate(widths)):
        raise UnsupportedNodeError("it pads along the batch axis")
    for axis, extent in enumerate(shape):
        before, after = min(widths[2 * axis], 0), min(widths[2 * axis + 1], 0)
        if not isinstance(extent, Batch):
            data = slice_axis(ctx, data, axis, -before, extent + after, 1)
    grown = [max(width, 0) for width in widths]
    if not any(grown):
        return data
    signal = data
    if len(shape) == 3:
        data, grown = ctx.as_image(data), [*grown[:4], 0, 0, *grown[4:]]
    for axis, extent in enumerate(ctx.shape(data)):
        most = max(grown[2 * axis : 2 * axis + 2])
        if mode not in ("reflect", "wrap") or isinstance(extent, Batch):
            continue
        available = extent - 1 if mode == "reflect" else extent
        if most > available:
            raise UnsupportedNodeError(
                f"it pads {extent} elements by {most} with mode={mode!r}, expected at most "
                f"{available}"
            )
    return ctx.as_given(ctx.emit(relax.op.nn.pad(data, grown, _PAD_MODES[mode], value)), signal)
