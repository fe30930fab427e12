"""Operators that move integers, or interpolate between them, without changing their scale."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, nhwc_shape, static_shape
from tvmquant.passes.lowering.emitter import Handler, Lowerer
from tvmquant.resize import WEIGHT_BITS, coordinates, linear, nearest
from tvmquant.schedules import linear_resize, structural


def axes_of(permute: relax.Call) -> tuple[int, ...]:
    """Return the order of a transpose's dimensions."""
    rank = len(permute.args[0].ty.shape.values)
    return tuple(int(a) for a in permute.attrs.axes or reversed(range(rank)))


def moves_nothing(permute: relax.Call) -> bool:
    """Whether only extents of 1 change places."""
    shape = static_shape(permute.args[0])
    moved = [axis for axis in axes_of(permute) if shape[axis] > 1]
    return moved == sorted(moved)


def permute_spec(x: relax.Expr, call: relax.Call) -> structural.PermuteSpec:
    """Return what a transpose does to its operand."""
    return structural.PermuteSpec(static_shape(x), axes_of(call), dtype_of(x))


def concat_spec(inputs: list[relax.Expr], call: relax.Call) -> structural.ConcatSpec:
    """Return what a concatenation does to its operands."""
    shapes = tuple(static_shape(x) for x in inputs)
    axis = int(call.attrs.axis) % len(shapes[0])
    return structural.ConcatSpec(shapes, axis, dtype_of(call))


def _permute(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    x = lowerer.lookup(call.args[0])
    array = qop.constant_array(x)
    if array is not None:
        return qop.constant(array.transpose(axes_of(call)))
    return lowerer.moved(permute_spec(x, call), [x], call)


def _concat(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    inputs = [lowerer.lookup(f) for f in call.args[0].fields]
    return lowerer.moved(concat_spec(inputs, call), inputs, call)


def _broadcast(lowerer: Lowerer, call: relax.Call) -> relax.Expr | None:
    array = qop.constant_array(lowerer.lookup(call.args[0]))
    if array is None:
        return None
    return qop.constant(np.broadcast_to(array, static_shape(call)))


def _slice(lowerer: Lowerer, call: relax.Call) -> relax.Expr | None:
    x = lowerer.lookup(call.args[0])
    if not all(isinstance(a, relax.Tuple) for a in call.args[1:]):
        return None
    shape, out = static_shape(x), static_shape(call)
    begin, step = [0] * len(shape), [1] * len(shape)
    axes, begins, _ends, *strides = (
        [int(getattr(v, "value", v)) for v in a.fields] for a in call.args[1:]
    )
    for i, axis in enumerate(axes):
        step[axis] = strides[0][i] if strides else 1
        start = begins[i] + (shape[axis] if begins[i] < 0 else 0)
        begin[axis] = min(max(start, 0), shape[axis] - 1 if step[axis] < 0 else shape[axis])
    spec = structural.SliceSpec(shape, tuple(begin), tuple(step), out, dtype_of(x))
    return lowerer.moved(spec, [x], call)


def _pad(lowerer: Lowerer, call: relax.Call) -> relax.Expr | None:
    widths = [int(v) for v in call.attrs.pad_width]
    if min(widths) < 0:
        return None
    x = lowerer.lookup(call.args[0])
    value = int(float(call.attrs.pad_value))
    spec = structural.PadSpec(
        static_shape(x), tuple(widths[::2]), tuple(widths[1::2]), value, dtype_of(x),
        str(call.attrs.pad_mode),
    )  # fmt: skip
    return lowerer.moved(spec, [x], call)


def _resize(lowerer: Lowerer, call: relax.Call) -> relax.Expr | None:
    a = call.attrs
    mode, rounding = str(a.coordinate_transformation_mode), str(a.rounding_method)
    if str(a.layout) != "NHWC" or mode == "tf_crop_and_resize":
        return None
    x = lowerer.lookup(call.args[0])
    extents, size = nhwc_shape(x)[1:3], nhwc_shape(call)[1:3]
    if str(a.method) == "linear":
        bits = WEIGHT_BITS[dtype_of(x)]
        taps = [
            np.stack(linear(coordinates(extent, target, mode), extent, bits), 1).astype(np.int32)
            for extent, target in zip(extents, size, strict=True)
        ]
        layer = linear_resize.LinearResizeSpec(nhwc_shape(x), size, dtype_of(x))
        kernel = linear_resize.kernel(layer, lowerer.machine)
        return lowerer.call(kernel, [x, *map(qop.constant, taps)], call.ty, call)
    if str(a.method) != "nearest_neighbor":
        return None
    rows, columns = (
        nearest(coordinates(extent, target, mode), extent, mode, rounding).astype(np.int32)
        for extent, target in zip(extents, size, strict=True)
    )
    spec = structural.ResizeSpec(nhwc_shape(x), size, dtype_of(x))
    return lowerer.moved(spec, [x, qop.constant(rows), qop.constant(columns)], call)


HANDLERS: dict[str, Handler] = {
    "relax.permute_dims": _permute,
    "relax.concat": _concat,
    "relax.strided_slice": _slice,
    "relax.nn.pad": _pad,
    "relax.image.resize2d": _resize,
    "relax.broadcast_to": _broadcast,
}
