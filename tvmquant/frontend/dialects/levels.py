"""Integers of any width, held in a type of ONNX that has room for them.

The type is the narrowest of 4, 8 and 16 bits (constants: 32 too) that holds all levels and the zero
point. Where it has room for more, real values are clipped to those of the outermost levels before
they are quantized, which gives the same integers: for levels of up to 16 bits,
``(level * scale) / scale`` in float32 rounds to ``level``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tvmquant.frontend.dialects.draft import Draft, Integers
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError

_TYPES = {
    4: (onnx.TensorProto.INT4, onnx.TensorProto.UINT4),
    8: (onnx.TensorProto.INT8, onnx.TensorProto.UINT8),
    16: (onnx.TensorProto.INT16, onnx.TensorProto.UINT16),
    32: (onnx.TensorProto.INT32, None),  # of which ONNX fixes the zero point at 0
}
# What QuantizeLinear writes, and what DequantizeLinear reads.
MOST_BITS = 16
MOST_CONSTANT_BITS = 32


@dataclass(frozen=True)
class Levels:
    """The integers from ``low`` to ``high``."""

    low: int
    high: int

    @classmethod
    def of(cls, bits: int, *, signed: bool, narrow: bool) -> Levels:
        """Return the levels of a width; narrow ones lack -2^(bits-1), or 2^bits - 1."""
        if signed:
            return cls(-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1)
        return cls(0, 2**bits - 1 - narrow)


@dataclass(frozen=True)
class Grid:
    """Scales and zero points of a tensor's integers, known and checked.

    Parameters
    ----------
    scale : float32 array of any shape that broadcasts to the tensor's
    zero_point : int64 array of the same shape
    """

    scale: Array
    zero_point: Array

    def axis(self) -> int | None:
        """Return the axis, counted from the back, along which scales differ.

        None where there is one scale.

        Raises
        ------
        UnsupportedNodeError
            If there are several such axes.
        """
        axes = [i - self.scale.ndim for i, extent in enumerate(self.scale.shape) if extent > 1]
        if len(axes) > 1:
            raise UnsupportedNodeError(
                f"its scales have shape {self.scale.shape}, expected one number or one for each "
                "index of one axis"
            )
        return axes[0] if axes else None

    def flat(self, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Return scales and zero points, of a type, with one dimension or none."""
        shape = (-1,) if self.scale.size > 1 else ()
        return self.scale.reshape(shape), self.zero_point.reshape(shape).astype(dtype)


def type_for(levels: Levels, zero_point: Array, most_bits: int) -> np.dtype[Any]:
    """Return the narrowest integer type that holds levels and zero points.

    Raises
    ------
    UnsupportedNodeError
        If there is none.
    """
    low = min(levels.low, int(zero_point.min()))
    high = max(levels.high, int(zero_point.max()))
    for bits, (signed, unsigned) in _TYPES.items():
        if bits > most_bits or (bits > MOST_BITS and np.any(zero_point)):
            break
        if unsigned is not None and low >= 0 and high < 2**bits:
            return _numpy_type(unsigned)
        if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1):
            return _numpy_type(signed)
    raise UnsupportedNodeError(
        f"its integers range from {low} to {high}, expected at most "
        f"{MOST_BITS if most_bits == MOST_BITS or np.any(zero_point) else most_bits} bits; "
        "export it with fewer, or leave this tensor in float"
    )


def _numpy_type(element: int) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    return dtype


def range_of(dtype: np.dtype[Any]) -> Levels:
    """Return all levels of an integer type."""
    name = dtype.name
    bits = int(name.removeprefix("u").removeprefix("int"))
    return Levels.of(bits, signed=not name.startswith("u"), narrow=False)


def write_constant(draft: Draft, array: Array, grid: Grid, name: str, output: str) -> None:
    """Write integers that are known as their real values, (array - zero_point) * scale.

    Parameters
    ----------
    draft : Draft
    array : int64 array
    grid : Grid
    name : str
        Of the node that is being written.
    output : str
    """
    levels = Levels(int(array.min(initial=0)), int(array.max(initial=0)))
    dtype = type_for(levels, grid.zero_point, MOST_CONSTANT_BITS)
    scale, zero_point = grid.flat(dtype)
    axis = grid.axis()
    inputs = [
        draft.constant(f"{name}/levels", array.astype(dtype)),
        draft.constant(f"{name}/scale", scale),
        draft.constant(f"{name}/zero_point", zero_point) if np.any(zero_point) else "",
    ]
    draft.emit(
        "DequantizeLinear",
        inputs,
        f"{name}/DequantizeLinear",
        output=output,
        axis=None if axis is None else axis + array.ndim,
    )


def write_rounded(
    draft: Draft, real: str, levels: Levels, grid: Grid, name: str, output: str
) -> None:
    """Write a tensor rounded to the nearest real values of levels.

    Parameters
    ----------
    draft : Draft
    real : str
        The tensor.
    levels : Levels
    grid : Grid
    name : str
        Of the node that is being written.
    output : str
    """
    dtype = type_for(levels, grid.zero_point, MOST_BITS)
    if levels != range_of(dtype):
        real = _clipped(draft, real, levels, grid, name)
    scale, zero_point = grid.flat(dtype)
    rounded = Integers(
        draft.value(f"{name}/integers"),
        draft.constant(f"{name}/scale", scale),
        draft.constant(f"{name}/zero_point", zero_point),
        axis=grid.axis() or 0,
    )
    draft.quantize(real, rounded, name)
    draft.dequantize(rounded, name, output=output)


def _clipped(draft: Draft, real: str, levels: Levels, grid: Grid, name: str) -> str:
    """Return a tensor within the real values of the outermost levels."""
    limits = []
    for side, level in (("low", levels.low), ("high", levels.high)):
        limit = ((level - grid.zero_point) * grid.scale.astype(np.float64)).astype(np.float32)
        limit = limit.reshape(()) if limit.size == 1 else limit
        limits.append(draft.constant(f"{name}/{side}", limit))
    if grid.scale.size == 1:
        return draft.emit("Clip", [real, *limits], f"{name}/Clip")
    above = draft.emit("Max", [real, limits[0]], f"{name}/Max")
    return draft.emit("Min", [above, limits[1]], f"{name}/Min")
