"""Resize and Upsample.

Where Relax's operator computes what ONNX defines, it is emitted. Other nearest resizes take
elements by constant indices, other interpolations are products with constant matrices, one for each
axis.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from tvmquant.frontend import resampling
from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import UnsupportedNodeError, check_size, show
from tvmquant.frontend.node import Node
from tvmquant.frontend.operators import coordinates_of
from tvmquant.frontend.registry import converter
from tvmquant.frontend.resampling import WHOLE, Axis

_METHODS = {"nearest": "nearest_neighbor", "linear": "linear"}
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
# TVM derives the scale from the sizes; a scale that gives other sizes by rounding shifts pixels.
_SCALE_TOLERANCE = 1e-5


def _axes(ctx: Context, node: Node, size: tuple[int, int]) -> tuple[Axis, Axis]:
    """Return how height and width are resized, by sizes or by scales."""
    coordinates = coordinates_of(node)
    axes = [ctx.axis(4, axis) for axis in node.integers("axes", [0, 1, 2, 3])]
    if node.op_type == "Upsample" or node.opset < 11:
        scales, sizes = _scales(ctx, node, 1), None
    else:
        scales, sizes = ctx.optional_constant(2), ctx.value(3)
    wanted = {axis: Axis(size[axis - 2], size[axis - 2], 1.0, coordinates) for axis in (2, 3)}
    if coordinates == "tf_crop_and_resize":
        for axis, region in _regions(ctx, axes).items():
            wanted[axis] = replace(wanted[axis], region=region)
    if isinstance(sizes, np.ndarray) and sizes.size:
        wanted = _by_sizes(ctx, node, dict(zip(axes, sizes.tolist(), strict=True)), wanted)
    elif scales is not None and scales.size:
        wanted = _by_scales(dict(zip(axes, scales.tolist(), strict=True)), wanted)
    else:
        raise UnsupportedNodeError("it has neither scales nor sizes")
    return wanted[2], wanted[3]


def _by_sizes(
    ctx: Context, node: Node, sizes: dict[int, Any], axes: dict[int, Axis]
) -> dict[int, Axis]:
    """Return axes of given extents, or of one scale that fits in them or covers them."""
    for axis, extent in sizes.items():
        # the batch and the channels of a symbolic shape stay what they are
        if axis < 2 and extent not in (1, ctx.shape(ctx.tensor(0))[axis]):
            raise UnsupportedNodeError(f"it resizes to {show([*sizes.values()])}, not height/width")
    targets = {axis: int(sizes.get(axis, axes[axis].target)) for axis in axes}
    scales = {axis: targets[axis] / axes[axis].extent for axis in axes}
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        if set(sizes) - {2, 3}:
            raise UnsupportedNodeError(
                f"keep_aspect_ratio_policy={policy!r} takes the batch and the channels into "
                "account; expected axes=[2, 3]"
            )
        scale = (min if policy == "not_larger" else max)(scales[axis] for axis in sizes)
        scales |= dict.fromkeys(sizes, scale)
        targets |= {axis: math.floor(scale * axes[axis].extent + 0.5) for axis in sizes}
    return {a: replace(axes[a], target=targets[a], scale=scales[a]) for a in axes}


def _by_scales(scales: dict[int, float], axes: dict[int, Axis]) -> dict[int, Axis]:
    """Return axes of given scales."""
    if not all(math.isfinite(scale) and scale > 0 for scale in scales.values()):
        raise UnsupportedNodeError(
            f"its scales are {[*scales.values()]}, expected positive numbers"
        )
    for axis, scale in scales.items():
        if axis < 2 and scale != 1.0:
            raise UnsupportedNodeError(f"it scales axis {axis}, expected height and width only")
        if axis >= 2:
            start, end = axes[axis].region
            exact = axes[axis].extent * (end - start) * scale
            # a float32 scale such as 5 / 3 falls short of the whole number that was meant
            target = round(exact) if _is_whole(exact) else math.floor(exact)
            axes = {**axes, axis: replace(axes[axis], target=target, scale=scale)}
    return axes


def _regions(ctx: Context, axes: list[int]) -> dict[int, tuple[float, float]]:
    """Return which part of height and width is resized, as fractions of them."""
    given = ctx.optional_constant(1)
    if given is None or given.size != 2 * len(axes) or not np.isfinite(given).all():
        raise UnsupportedNodeError(
            f"its region is {None if given is None else given.tolist()}, expected a start and an "
            f"end for each of {len(axes)} axes"
        )
    starts, ends = np.split(given.astype(np.float64), 2)
    regions = dict(zip(axes, zip(starts.tolist(), ends.tolist(), strict=True), strict=True))
    if any(regions.get(axis, WHOLE) != WHOLE for axis in (0, 1)):
        raise UnsupportedNodeError(f"it crops the batch or the channels: {given.tolist()}")
    return {axis: region for axis, region in regions.items() if axis >= 2}


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
    if wanted == size and stays and all(axis.region == WHOLE for axis in axes):
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
    by_relax = by_relax and not (mode != "nearest" and _is_filtered(node, axes))
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


def _is_filtered(node: Node, axes: tuple[Axis, Axis]) -> bool:
    """Whether filters widen where several inputs become one output."""
    return node.integer("antialias", 0) == 1 and any(axis.scale < 1 for axis in axes)


def _is_excluded(node: Node) -> bool:
    """Whether what lies beyond the border weighs nothing."""
    return node.integer("exclude_outside", 0) == 1


def _resample(
    ctx: Context, node: Node, data: relax.Expr, axes: tuple[Axis, Axis], rounding: str
) -> relax.Var:
    """Emit the resize axis by axis, as indices or as a product with weights."""
    for number, axis in zip((2, 3), axes, strict=True):
        if axis.extent == axis.target and axis.scale == 1.0 and axis.region == WHOLE:
            continue
        if rounding:
            index = ctx.embed(resampling.nearest(axis, rounding))
            data = ctx.emit(relax.op.take(data, index, number, mode="clip"))
            continue
        matrix = resampling.weights(
            axis, node.text("mode", "nearest"), node.number("cubic_coeff_a", -0.75),
            exclude_outside=_is_excluded(node), antialias=_is_filtered(node, axes),
        )  # fmt: skip
        if number == 2:
            data = ctx.emit(relax.op.permute_dims(data, [0, 1, 3, 2]))
        data = ctx.emit(relax.op.matmul(data, ctx.embed(matrix)))
        if number == 2:
            data = ctx.emit(relax.op.permute_dims(data, [0, 1, 3, 2]))
    inside = np.logical_and.outer(axes[0].inside(), axes[1].inside())
    value = node.number("extrapolation_value", 0.0)
    if inside.all() or (value == 0.0 and not rounding):
        return data
    beyond = ctx.embed(np.asarray(value, str(data.ty.dtype)))
    return ctx.emit(relax.op.where(ctx.embed(inside), data, beyond))
