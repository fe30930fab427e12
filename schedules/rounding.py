"""Rounding of float32 values and vectors to integers, ties to even."""

from __future__ import annotations

import tvm
from tvm import tirx

# 1.5 * 2**23: a float32 sum with it within +-2**22 has no fraction bits
ROUNDING = 12582912.0
ROUNDING_BITS = 0x4B400000


def quantized(
    x: tirx.PrimExpr, scale: tirx.PrimExpr, low: tirx.PrimExpr, high: tirx.PrimExpr,
    zero_point: tirx.PrimExpr, dtype: str,
) -> tirx.PrimExpr:  # fmt: skip
    """Return the integers of one value or vector, equation (1) of `tvmquant.arithmetic`.

    Parameters
    ----------
    x, scale, low, high : float32
        The value; its scale; the least and the greatest integer, less the zero point.
    zero_point : int32
    dtype : str
        Of one integer.

    Notes
    -----
    The clip comes before the rounding, which changes nothing since its bounds are integers. NaN
    becomes the least: it fails the first comparison.
    """
    steps = x / scale
    above = tirx.Select(steps > low, steps, low)
    clipped = tirx.Select(above < high, above, high)
    return rounded_half_even(clipped, zero_point).astype(of_lanes(dtype, lanes_of(x)))


def rounded_half_even(x: tirx.PrimExpr, zero_point: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return ``round_half_even(x) + zero_point``, int32, of float32 values within +-2**22.

    Notes
    -----
    The sum with 1.5 * 2**23, whose last bit is worth 1, rounds ties to even, and its low bits are
    the integer: no rounding instruction is needed, and for lack of products there is nothing that
    could contract into a fused multiply-add.
    """
    lanes = lanes_of(x)
    moved = x + spread(tirx.const(ROUNDING, "float32"), lanes)
    bits = tirx.reinterpret(of_lanes("int32", lanes), moved)
    return bits - (spread(tirx.const(ROUNDING_BITS, "int32"), lanes) - zero_point)


def of_lanes(dtype: str, lanes: int) -> str:
    """Return the type of a vector; of one lane it is a scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lanes_of(x: tirx.PrimExpr) -> int:
    """Return how many lanes a value has."""
    return int(tvm.DataType(str(x.ty.dtype)).lanes)


def spread(scalar: tirx.PrimExpr, lanes: int) -> tirx.PrimExpr:
    """Return a scalar in every lane."""
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)
