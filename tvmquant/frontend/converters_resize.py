"""Resize and Upsample: the cases in which TVM computes what ONNX defines; others are rejected."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import UnsupportedNodeError, show
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter

_METHODS = {"nearest": "nearest_neighbor", "linear": "linear"}
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
# TVM derives the scale from the sizes; a scale that gives other sizes by rounding shifts pixels.
_SCALE_TOLERANCE = 1e-5


def _check_resize(node: Node) -> str | None:
    mode, coordinates = node.text("mode", "nearest"), _coordinates(node)
    if mode not in _METHODS:
        return f"mode={mode!r} is not supported, expected one of {', '.join(_METHODS)}"
    if coordinates not in _COORDINATES:
        return (
            f"coordinate_transformation_mode={coordinates!r} is not supported, expected one of "
            f"{', '.join(_COORDINATES)}"
        )
    for name, expected in (("antialias", 0), ("exclude_outside", 0)):
        if node.integer(name, expected) != expected:
            return f"{name}={node.integer(name, 0)} is not supported, expected {expected}"
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        return f"keep_aspect_ratio_policy={policy!r} is not supported, expected 'stretch'"
    return None


def _coordinates(node: Node) -> str:
    """Return the mapping of coordinates; before opset 11 there was one only."""
    default = "half_pixel" if node.opset >= 11 else "asymmetric"
    return node.text("coordinate_transformation_mode", default)


def _output_size(ctx: Context, node: Node, size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width that sizes or scales ask for."""
    given = node.integers("axes", [0, 1, 2, 3])
    axes = [ctx.axis(4, axis) for axis in given]
    if node.op_type == "Upsample" or node.opset < 11:
        scales, sizes = _scales(ctx, node, 1), None
    else:
        scales, sizes = ctx.optional_constant(2), ctx.value(3)
    wanted = list(size)
    if isinstance(sizes, np.ndarray) and sizes.size:
        # the batch and the channels of a symbolic shape stay what they are
        for axis, extent in zip(axes, sizes.tolist(), strict=True):
            if axis >= 2:
                wanted[axis - 2] = int(extent)
            elif extent not in (1, ctx.shape(ctx.tensor(0))[axis]):
                raise UnsupportedNodeError(
                    f"it resizes to {show(sizes.tolist())}, not height/width"
                )
        return wanted[0], wanted[1]
    if scales is None or not scales.size:
        raise UnsupportedNodeError("it has neither scales nor sizes")
    for axis, scale in zip(axes, scales.tolist(), strict=True):
        if axis < 2 and scale != 1.0:
            raise UnsupportedNodeError(f"it scales axis {axis}, expected height and width only")
        if axis >= 2:
            exact = size[axis - 2] * scale
            # a float32 scale such as 5 / 3 falls short of the whole number that was meant
            wanted[axis - 2] = round(exact) if _is_whole(exact) else math.floor(exact)
            if _coordinates(node) != "align_corners" and not _is_whole(exact):
                raise UnsupportedNodeError(
                    f"scale {scale:g} of {size[axis - 2]} pixels gives {exact:g}, not a whole "
                    "number; export the model with sizes instead of scales"
                )
    return wanted[0], wanted[1]


def _is_whole(extent: float) -> bool:
    return abs(extent - round(extent)) <= _SCALE_TOLERANCE * max(extent, 1.0)


def _scales(ctx: Context, node: Node, index: int) -> np.ndarray | None:
    if "scales" in node.attributes:
        return np.asarray(node.attributes["scales"], np.float32)
    return ctx.optional_constant(index)


@converter("Resize", "Upsample", check=_check_resize)
def _convert_resize(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    size = ctx.spatial(data)
    wanted = _output_size(ctx, node, size)
    if min(wanted) < 1:
        raise UnsupportedNodeError(f"it resizes to {wanted}")
    if wanted == size:
        return data
    mode, coordinates = node.text("mode", "nearest"), _coordinates(node)
    if coordinates == "pytorch_half_pixel" and 1 in wanted:
        raise UnsupportedNodeError("it resizes to one pixel with 'pytorch_half_pixel'")
    rounding = ""
    if mode == "nearest":
        default = "round_prefer_floor" if node.opset >= 11 else "floor"
        rounding = node.text("nearest_mode", default)
    call = relax.op.image.resize2d(
        data,
        wanted,
        layout="NCHW",
        method=_METHODS[mode],
        coordinate_transformation_mode=coordinates,
        rounding_method=rounding,
    )
    return ctx.emit(call)
