"""Which input positions each output position of a resize reads, and with what weights.

Coordinates are computed in float32, as TVM computes them, so that ties fall alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvmquant.arithmetic import Array, IntArray
from tvmquant.errors import QuantizationError

# Of the weights of linear interpolation in integers, per axis, by the type that is resized: the
# weighted sum of bytes then fits 32 bits, and that of the 30 bits of sums that are kept 64.
WEIGHT_BITS = {"uint8": 11, "int16": 11, "int32": 16}
# of a tensor in finer steps, in int32
RESIZED_BITS = 24

# TVM nudges coordinates by this before floor and ceil.
_EPSILON = np.float32(1e-5)
# by the names of ``rounding_method``
ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round": np.rint,
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": lambda x: np.floor(x + _EPSILON),
    "ceil": lambda x: np.ceil(x - _EPSILON),
}


def coordinates(extent: int, target: int, mode: str, start: float = 0.0, end: float = 1.0) -> Array:
    """Map output positions to real input positions.

    Parameters
    ----------
    extent, target : int
        Input and output extent.
    mode : str
        ``coordinate_transformation_mode`` of ``relax.image.resize2d``.
    start, end : float
        Region of interest along this axis (``tf_crop_and_resize`` only), as fractions.

    Returns
    -------
    float32 array of shape (target,)
    """
    x = np.arange(target, dtype=np.float32)
    scale, half = np.float32(extent / target), np.float32(0.5)
    match mode:
        case "half_pixel":
            return (x + half) * scale - half
        case "align_corners":
            return np.float32((extent - 1) / max(target - 1, 1)) * x
        case "asymmetric":
            return scale * x
        case "pytorch_half_pixel":
            return (x + half) * scale - half if target > 1 else np.zeros_like(x)
        case "tf_half_pixel_for_nn":
            return (x + half) * scale
        case "tf_crop_and_resize":
            if target == 1:
                return np.full_like(x, 0.5 * (start + end) * (extent - 1))
            step = x * np.float32(end - start) * np.float32(extent - 1) / np.float32(target - 1)
            return np.float32(start * (extent - 1)) + step
    raise QuantizationError(f"unknown coordinate_transformation_mode {mode!r}")


def linear(positions: Array, extent: int, bits: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return the two neighbours of real positions, and the weight of the upper one.

    Weights are multiples of ``2**-bits``, rounded half to even: exact for factors that are powers
    of two up to ``2**(bits - 1)``, else off by half of that, which moves an interpolated value by
    no more than ``2**-(bits + 1)`` of the neighbours' difference.

    Parameters
    ----------
    positions : float32 array
        From `coordinates`.
    extent : int
        Input extent; beyond it stands the border's value.
    bits : int
        From `WEIGHT_BITS`.
    """
    lower = np.floor(positions).astype(np.int64)
    weight = np.rint((positions - lower) * np.float32(1 << bits)).astype(np.int64)
    return np.clip(lower, 0, extent - 1), np.clip(lower + 1, 0, extent - 1), weight


def nearest(positions: Array, extent: int, mode: str, rounding: str) -> IntArray:
    """Round real positions to input indices.

    Parameters
    ----------
    positions : float32 array
        From `coordinates`.
    extent : int
        Input extent; indices are clipped to it.
    mode, rounding : str
        ``coordinate_transformation_mode`` and ``rounding_method``; an empty rounding means
        ``round`` for align_corners and ``floor`` otherwise.
    """
    rounding = rounding or ("round" if mode == "align_corners" else "floor")
    if rounding not in ROUNDINGS:
        raise QuantizationError(f"unknown rounding_method {rounding!r}")
    index: IntArray = ROUNDINGS[rounding](positions).astype(np.int64)
    return np.clip(index, 0, extent - 1)
