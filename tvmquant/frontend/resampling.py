"""Weights of the resizes that ONNX defines, for those that are written as products with constants.

Each output of an axis is a weighted sum of inputs around a real position; `weights` returns them as
a matrix. References: Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981; the
operator Resize of ONNX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tvmquant.frontend.dimensions import Array

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
# Of a region: all of an axis.
WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Parameters
    ----------
    extent, target : int
        Input and output extent.
    scale : float
        As the node gives it, which ``target / extent`` may fall short of.
    coordinates : str
        One of `COORDINATES`.
    region : (float, float)
        Of "tf_crop_and_resize": first and last position of the result, over those of the input.
    """

    extent: int
    target: int
    scale: float
    coordinates: str
    region: tuple[float, float] = WHOLE

    def positions(self) -> Array:
        """Return the real position of each output in the input, float32 as in ONNX Runtime."""
        x, scale, half = np.arange(self.target, dtype="f"), np.float32(self.scale), np.float32(0.5)
        if self.coordinates == "asymmetric":
            return x / scale
        if self.coordinates == "tf_half_pixel_for_nn":
            return (x + half) / scale
        if self.coordinates == "tf_crop_and_resize":
            start, end = np.array(self.region, "f")
            last = np.float32(self.extent - 1)
            if self.target == 1:
                return np.array([half * (start + end) * last], "f")
            step = (end - start) * last / np.float32(self.target - 1)
            return np.asarray(start * last + x * step, "f")
        if self.coordinates == "align_corners":
            return x * np.float32(self.extent - 1) / np.float32(max(self.target - 1, 1))
        if self.coordinates == "pytorch_half_pixel" and self.target == 1:
            return np.zeros_like(x)
        offset = np.float32(0)
        if self.coordinates == "half_pixel_symmetric":
            adjustment = np.float32(self.target) / (scale * np.float32(self.extent))
            offset = np.float32(self.extent / 2) * (np.float32(1) - adjustment)
        return offset + (x + half) / scale - half

    def inside(self) -> Array:
        """Return which outputs are made of inputs, not of the value beyond the border."""
        x = self.positions()
        cropped = self.coordinates == "tf_crop_and_resize"
        return (x >= 0) & (x <= self.extent - 1) if cropped else np.ones_like(x, bool)


def nearest(axis: Axis, rounding: str) -> Array:
    """Return which input each output is, int64; ``rounding`` as the attribute nearest_mode."""
    half = np.float32(0.5)
    x = axis.positions()
    rounded = {
        "round_prefer_floor": np.ceil(x - half),
        "round_prefer_ceil": np.floor(x + half),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[rounding]
    return np.clip(rounded, 0, axis.extent - 1).astype(np.int64)


def weights(
    axis: Axis, mode: str, coefficient: float, *, exclude_outside: bool, antialias: bool = False
) -> Array:
    """Return the weight of each input for each output, float32 (extent, target).

    An output that lies beyond the border by `Axis.inside` has none.

    Parameters
    ----------
    axis : Axis
    mode : {"linear", "cubic"}
    coefficient : float
        Of the cubic, cubic_coeff_a.
    exclude_outside : bool
        Whether inputs beyond the border weigh nothing, instead of being the border's.
    antialias : bool
        Whether the filter is as wide as the inputs that an output stands for, where those are
        several.
    """
    result = np.zeros((axis.extent, axis.target))
    narrowing = min(axis.scale, 1.0) if antialias else 1.0
    reach = (1 if mode == "linear" else 2) / narrowing
    for output, position in enumerate(axis.positions().astype(np.float64)):
        taps = np.arange(math.floor(position - reach) + 1, math.ceil(position + reach))
        distances = (taps - position) * narrowing
        values = _linear(distances) if mode == "linear" else _cubic(distances, coefficient)
        if exclude_outside:
            values = np.where((taps >= 0) & (taps < axis.extent), values, 0.0)
        if exclude_outside or antialias:
            values = values / values.sum()
        np.add.at(result[:, output], np.clip(taps, 0, axis.extent - 1), values)
    result[:, ~axis.inside()] = 0.0
    return result.astype(np.float32)


def _linear(distance: Array) -> Array:
    return np.maximum(1.0 - np.abs(distance), 0.0)


def _cubic(distance: Array, a: float) -> Array:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
