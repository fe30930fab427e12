"""Resize and Upsample.

Where Relax's operator computes what ONNX defines, it is emitted. Other nearest resizes take
elements by constant indices, other interpolations are products with constant matrices, one for each
axis. What depends on a region of interest, or on a filter that widens, is rejected.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvmquant.frontend import resampling
from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import UnsupportedNodeError, check_size, show
from tvmquant.frontend.node import Node
from tvmquant.frontend.operators import coordinates_of
from tvmquant.frontend.registry import converter
from tvmquant.frontend.resampling import Axis

_METHODS = {"nearest": "nearest_neighbor", "linear": "linear"}
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
# TVM derives the scale from the sizes; a scale that gives other sizes by rounding shifts pixels.
_SCALE_TOLERANCE = 1e-5


def _axes(ctx: Context, node: Node, size: tuple[int, int]) -> tuple[Axis, Axis]:
    """Return how height and width are resized, by sizes or by scales."""
    coordinates = coordinates_of(node)
    given = node.integers("axes", [0, 1, 2, 3])
    axes = [ctx.axis(4, axis) for axis in given]
    if node.op_type == "Upsample" or node.opset < 11:
        scales, sizes = _scales(ctx, node, 1), None
    else:
        scales, sizes = ctx.optional_constant(2), ctx.value(3)
    wanted = {axis: Axis(size[axis - 2], size[axis - 2], 1.0, coordinates) for axis in (2, 3)}
    if isinstance(sizes, np.ndarray) and sizes.size:
        # the batch and the channels of a symbolic shape stay what they are
        for axis, extent in zip(axes, sizes.tolist(), strict=True):
            if axis >= 2:
                before = size[axis - 2]
                wanted[axis] = Axis(before, int(extent), int(extent) / before, coordinates)
            elif extent not in (1, ctx.shape(ctx.tensor(0))[axis]):
                raise UnsupportedNodeError(
                    f"it resizes to {show(sizes.tolist())}, not height/width"
                )
        return wanted[2], wanted[3]
    if scales is None or not scales.size:
        raise UnsupportedNodeError("it has neither scales nor sizes")
    if not np.all(np.isfinite(scales) & (scales > 0)):
        raise UnsupportedNodeError(f"its scales are {scales.tolist()}, expected positive numbers")
    for axis, scale in zip(axes, scales.tolist(), strict=True):
        if axis < 2 and scale != 1.0:
            raise UnsupportedNodeError(f"it scales axis {axis}, expected height and width only")
        if axis >= 2:
            exact = size[axis - 2] * scale
            # a float32 scale such as 5 / 3 falls short of the whole number that was meant
            target = round(exact) if _is_whole(exact) else math.floor(exact)
            wanted[axis] = Axis(size[axis - 2], target, scale, coordinates)
    return wanted[2], wanted[3]


def _is_whole(extent: float) -> bool:
    return abs(extent - round(extent)) <= _SCALE_TOLERANCE * max(extent, 1.0)


def _scales(ctx: Context, node: Node, index: int) -> np.ndarray | None:
    if "scales" in node.attributes:
        return np.asarray(node.attributes["scales"], np.float32)
    return ctx.optional_constant(index)


@converter("Resize", "Upsample")
def _convert_resize(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    size = ctx.spatial(data)
    axes = _axes(ctx, node, size)
    wanted = axes[0].target, axes[1].target
    if min(wanted) < 1:
        raise UnsupportedNodeError(f"it resizes to {wanted}")
    check_size((*ctx.shape(data)[:2], *wanted))
    mode, coordinates = node.text("mode", "nearest"), coordinates_of(node)
    stays = all(axis.scale == 1.0 or _is_whole(axis.extent * axis.scale) for axis in axes)
    if wanted == size and stays:
        return data
    rounding = ""
    if mode == "nearest":
        default = "round_prefer_floor" if node.opset >= 11 else "floor"
        rounding = node.text("nearest_mode", default)
    if coordinates == "align_corners" and not stays:
        # by ONNX's text and in ONNX Runtime the corners are those of the result, by ONNX's tests
        # those of the fraction that it is cut from
        raise UnsupportedNodeError(
            f"it aligns the corners of {size} and of a result that its scales make "
            f"{tuple(axis.extent * axis.scale for axis in axes)}, on which runtimes differ; "
            f"resize to the sizes {wanted} instead of by scales"
        )
    by_relax = mode in _METHODS and coordinates in _COORDINATES and not _is_excluded(node)
    if not (by_relax and stays) or (coordinates == "pytorch_half_pixel" and 1 in wanted):
        return _resample(ctx, node, data, axes, rounding)
    call = relax.op.image.resize2d(
        data,
        wanted,
        layout="NCHW",
        method=_METHODS[mode],
        coordinate_transformation_mode=coordinates,
        rounding_method=rounding,
    )
    return ctx.emit(call)


def _is_excluded(node: Node) -> bool:
    """Whether what lies beyond the border weighs nothing."""
    return node.integer("exclude_outside", 0) == 1


def _resample(
    ctx: Context, node: Node, data: relax.Expr, axes: tuple[Axis, Axis], rounding: str
) -> relax.Var:
    """Emit the resize axis by axis, as indices or as a product with weights."""
    for number, axis in zip((2, 3), axes, strict=True):
        if axis.extent == axis.target and axis.scale == 1.0:
            continue
        if rounding:
            index = ctx.embed(resampling.nearest(axis, rounding))
            data = ctx.emit(relax.op.take(data, index, number, mode="clip"))
            continue
        matrix = resampling.weights(
            axis, node.text("mode", "nearest"), node.number("cubic_coeff_a", -0.75),
            exclude_outside=_is_excluded(node),
        )  # fmt: skip
        if number == 2:
            data = ctx.emit(relax.op.permute_dims(data, [0, 1, 3, 2]))
        data = ctx.emit(relax.op.matmul(data, ctx.embed(matrix)))
        if number == 2:
            data = ctx.emit(relax.op.permute_dims(data, [0, 1, 3, 2]))
    return data
