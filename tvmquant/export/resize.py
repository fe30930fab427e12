"""Resizes: as ONNX's operator where that reads the same elements, else as a Gather of them.

The library rounds what it interpolates to the integers of the input, so that a linear resize is
quantized again.
"""

from __future__ import annotations

import numpy as np

from tvmquant.arithmetic import IntArray
from tvmquant.errors import UnsupportedModelError
from tvmquant.export import shapes
from tvmquant.export.call_writer import CallWriter, Writer
from tvmquant.export.shapes import extents_of
from tvmquant.ir.tensor_types import integers
from tvmquant.resize import coordinates, nearest

# Mappings of coordinates that both have under one name.
SHARED_MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
# ONNX's roundings, by Relax's names.
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _resize2d(writer: CallWriter) -> str:
    method, mode = str(writer.attrs.method), str(writer.attrs.coordinate_transformation_mode)
    if method == "nearest_neighbor":
        return _nearest(writer, mode)
    if method != "linear" or mode not in SHARED_MODES:
        raise UnsupportedModelError(
            f"node {writer.name!r}: it resizes by {method} with {mode}, which ONNX has no operator "
            "for"
        )
    resized = _resize(writer, mode="linear", coordinate_transformation_mode=mode)
    return writer.network.rounded(writer.var, resized, f"{writer.name}/rounded")


def _resize(writer: CallWriter, **attributes: str) -> str:
    """Append a Resize of height and width, by factors where these give the sizes."""
    before, after = (extents_of(e) for e in (writer.call.args[0], writer.call))
    pairs = list(zip(integers(before[2:]), integers(after[2:]), strict=True))
    scales = np.asarray([1.0, 1.0, *(target / extent for extent, target in pairs)], np.float32)
    # a runtime rounds down, and a third of 5 in float32 falls short of it
    exact = all(
        np.floor(scale * np.float32(extent)) == target
        for scale, (extent, target) in zip(scales[2:], pairs, strict=True)
    )
    operands = [writer.tensor(0), ""]
    operands += (
        [writer.constant(scales, "scales")] if exact else ["", shapes.exact_shape(writer, after)]
    )
    return writer.node("Resize", operands, **attributes)


def _nearest(writer: CallWriter, mode: str) -> str:
    rounding = str(writer.attrs.rounding_method)
    rounding = rounding or ("round" if mode == "align_corners" else "floor")
    before, after = (integers(extents_of(e)[2:]) for e in (writer.call.args[0], writer.call))
    indices = [
        nearest(coordinates(extent, target, mode), extent, mode, rounding)
        for extent, target in zip(before, after, strict=True)
    ]
    if mode in SHARED_MODES and rounding in ROUNDINGS:
        theirs = [_by_onnx(n, m, mode, rounding) for n, m in zip(before, after, strict=True)]
        if all(map(np.array_equal, indices, theirs)):
            return _resize(
                writer, mode="nearest", coordinate_transformation_mode=mode, nearest_mode=rounding
            )
    x = writer.tensor(0)
    for axis, index in zip((2, 3), indices, strict=True):
        if not np.array_equal(index, np.arange(before[axis - 2])):
            x = writer.node("Gather", [x, writer.integers(index.tolist(), "index")], axis=axis)
    return x


def _by_onnx(extent: int, target: int, mode: str, rounding: str) -> IntArray:
    """Return which element ONNX's operator reads for each, as runtimes compute it in float32."""
    x, scale = np.arange(target, dtype=np.float32), np.float32(target / extent)
    half = np.float32(0.5)
    positions = {
        "half_pixel": (x + half) / scale - half,
        "pytorch_half_pixel": (x + half) / scale - half if target > 1 else 0.0 * x,
        "align_corners": x * np.float32(extent - 1) / np.float32(max(target - 1, 1)),
        "asymmetric": x / scale,
    }[mode]
    rounded = {
        "round_prefer_floor": np.ceil(positions - half),
        "round_prefer_ceil": np.floor(positions + half),
        "floor": np.floor(positions),
        "ceil": np.ceil(positions),
    }[rounding]
    index: IntArray = np.clip(rounded, 0, extent - 1).astype(np.int64)
    return index


RESIZES: dict[str, Writer] = {"relax.image.resize2d": _resize2d}
