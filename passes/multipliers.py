"""Dyadic multipliers of the terms of a region, and the integers that equation (3) fits.

`choose_multipliers` turns ratios of scales into dyadic numbers and proves in which integer width
equation (3) of `tvmquant.arithmetic` can be evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmquant.arithmetic import (
    INT32_MAX,
    MAX_NARROW_SHIFT,
    MIN_NARROW_BITS,
    Array,
    FloatArray,
    IntArray,
    required_compute_dtype,
)
from tvmquant.errors import QuantizationError

# A multiplier that is not exact may move a result of 8 bits by this much of one step, and a layer's
# of fewer bits by as much of its range, of which a step is a larger part. ResNet-20 trained with 4
# bits, its scales as they were trained, agrees with its library on 97.6 % of images where 1/32 of
# any step is allowed, on 99.2 % where 1/512 is. (Other regions of MobileNetV3-small with 4 bits
# would take 64 bits then, the network 1.026 times as long.)
MAX_MULTIPLIER_ERROR = 1.0 / 32.0
# What is rounded to a scale that came with a model is to be what its own runtime rounds to.
MAX_IMPORTED_ERROR = 2.0**-20
# The multiplier of negative sums is one of few bits times the slope, rounded: it may move the least
# or greatest number of the output by this much of one step (what rounding to steps adds grows by
# 6 % at most), others by proportion.
MAX_SLOPE_ERROR = 1.0 / 4.0
# Scales are stored in float32: a ratio that is so close to a dyadic number, relatively, is one.
STORED_PRECISION = 2.0**-22
# Ratios of scales with denominators of up to so much are taken for dyadic ones.
MOST_DYADIC = 2**16
# A channel whose accumulator cannot move the output further than this may have any multiplier.
NEGLIGIBLE_STEPS = 8.0


@dataclass(frozen=True)
class Multipliers:
    """Dyadic multipliers of every term, one shift per channel, and the proven compute dtype."""

    values: tuple[IntArray, ...]
    shift: IntArray
    compute_dtype: str


def choose_multipliers(
    ratios: list[FloatArray],
    bounds: list[Array],
    zero_point: int,
    bias: FloatArray | float,
    *,
    name: str,
    span: tuple[Array, Array] | None = None,
    snap_first: bool = False,
    slack: Array | float = 0.0,
    slopes: FloatArray | None = None,
    reach: Array | float = 0.0,
    levels: int = 256,
    imported: bool = False,
) -> Multipliers:
    """Choose dyadic multipliers, in 32 bits where that is exact enough, else in 64.

    Parameters
    ----------
    ratios : list of float64 arrays
        Term scale over output scale, per channel.
    bounds : list of integer arrays
        Largest magnitude of each term's integer, per channel.
    zero_point : int
        Output zero point.
    bias : float array
        What else enters the sum, in output steps.
    name : str
        Layer, for the error message.
    span : (integer array, integer array), optional
        Least and greatest value of the first term's integer, where more is known than its bound.
    snap_first : bool
        The first term's scale may grow to make its multiplier exact; its multiplier is then
        rounded up, and needs `MIN_NARROW_BITS` bits only.
    slack : float array
        Output steps by which the bias may move yet.
    slopes : float64 array, optional
        What the first and only term is multiplied by where it is negative; that multiplier is the
        first's times the slope, rounded, and comes second.
    reach : integer array
        With slopes: largest magnitude, in output steps, of what they give that is not clipped.
    levels : int
        Of the output; fewer than 256 ask for multipliers that are more exact.
    imported : bool
        The output's scale came with the model.

    Raises
    ------
    QuantizationError
        If a ratio is not finite, or the sum cannot be evaluated in 64 bits.
    """
    for ratio in ratios:
        if not np.all(np.isfinite(ratio)):
            raise QuantizationError(f"layer {name!r}: a scale ratio is not finite")
    sides = [] if slopes is None else [slopes]
    shape = np.broadcast_shapes(*[np.shape(a) for a in (*ratios, *bounds, bias, *sides)])
    terms = _Terms(ratios, bounds, zero_point, np.asarray(bias, np.float64), span, slack)
    most = MAX_IMPORTED_ERROR if imported else MAX_MULTIPLIER_ERROR * min(1.0, levels / 256)
    narrow = _narrow(terms, snap_first, shape, slopes, reach, most)
    return _wide(terms, shape, name, slopes) if narrow is None else narrow


@dataclass(frozen=True)
class _Terms:
    """What is multiplied and added; see `choose_multipliers`."""

    ratios: list[FloatArray]
    bounds: list[Array]
    zero_point: int
    bias: FloatArray
    span: tuple[Array, Array] | None
    slack: Array | float

    def greatest(self, values: list[IntArray], shift: IntArray, paired: bool) -> FloatArray:
        """Return the largest magnitude of any partial sum of equation (3)."""
        unit = np.exp2(shift)
        magnitudes = [np.abs(value).astype(np.float64) for value in values]
        if paired:  # one of the two is used
            magnitudes = [np.maximum(*magnitudes)]
        ends: list[FloatArray] = [magnitudes[0] * self.bounds[0] + np.abs(self.bias) * unit]
        if self.span is not None:
            products = [values[0] * end.astype(np.float64) for end in self.span]
            ends = [np.abs(p + bias) for p in products for bias in (0.0, self.bias * unit)]
        total = np.max(np.broadcast_arrays(*ends), axis=0)
        total = total + (abs(self.zero_point) + 2.0 + self.slack) * unit
        for magnitude, bound in zip(magnitudes[1:], self.bounds[1:], strict=True):
            total = total + magnitude * bound
        return np.asarray(total)


def has_ties(chosen: Multipliers) -> bool:
    """Whether sums lie between two integers often, as those of dyadic ratios of scales do."""
    shift = np.broadcast_arrays(chosen.shift, *chosen.values)[0]
    whole = [np.broadcast_to(value, shift.shape) for value in chosen.values]
    together = np.bitwise_or.reduce([np.abs(value) for value in whole])
    # the least bit that is set in any of them
    common = together & -together
    return bool(np.any((np.int64(1) << shift) <= common * MOST_DYADIC))


def _round(
    ratios: list[FloatArray], shift: IntArray, snap_first: bool, slopes: FloatArray | None
) -> list[IntArray]:
    values = []
    for i, ratio in enumerate(ratios):
        exact = np.ldexp(ratio, shift)
        up = np.sign(exact) * np.ceil(np.abs(exact)) if snap_first and i == 0 else np.rint(exact)
        values.append(np.asarray(up, np.int64))
    if slopes is not None:
        values.append(np.rint(values[0] * slopes).astype(np.int64))
    return values


def _error(ratio: FloatArray, value: IntArray, shift: IntArray) -> FloatArray:
    """Return how far multipliers are from ratios, 0 where these are known no better."""
    difference = np.abs(np.ldexp(value.astype(np.float64), -shift) - ratio)
    return np.where(difference <= np.abs(ratio) * STORED_PRECISION, 0.0, difference)


def _narrow(
    terms: _Terms,
    snap_first: bool,
    shape: tuple[int, ...],
    slopes: FloatArray | None,
    reach: Array | float,
    most_error: float,
) -> Multipliers | None:
    ratios, bounds = terms.ratios, terms.bounds
    shift = np.full(shape, MAX_NARROW_SHIFT, np.int64)
    while True:
        values = _round(ratios, shift, snap_first, slopes)
        total = terms.greatest(values, shift, slopes is not None)
        too_big = (total > INT32_MAX) & (shift > 1)
        if not too_big.any():
            break
        shift = np.where(too_big, shift - 1, shift)
    if np.any(total > INT32_MAX):
        return None
    first = 1 if snap_first else 0
    moved = sum(
        np.asarray(bound, np.float64) * _error(ratio, value, shift)
        for ratio, value, bound in list(zip(ratios, values, bounds, strict=False))[first:]
    )
    if np.any(np.asarray(moved) > most_error):
        return None
    half_step = np.exp2(-shift.astype(np.float64) - 1)
    if slopes is not None:
        # of sums that are not clipped, acc * M_n / 2**s is at most the reach
        unclipped = reach * np.exp2(shift) / np.maximum(np.abs(values[1]), 1)
        moved = np.minimum(unclipped, bounds[0]) * half_step
        if np.any((slopes != 0.0) & (moved > MAX_SLOPE_ERROR)):
            return None
    if snap_first:
        # what never moves the output by more than a few steps needs no precise multiplier
        moves = np.abs(ratios[0]) * np.asarray(bounds[0], np.float64)
        alive = np.broadcast_to(moves > NEGLIGIBLE_STEPS, shape)
        if np.any(alive & (np.abs(np.broadcast_to(values[0], shape)) < 2 ** (MIN_NARROW_BITS - 1))):
            return None
    return Multipliers(tuple(values), shift, "int32")


def _wide(
    terms: _Terms, shape: tuple[int, ...], name: str, slopes: FloatArray | None
) -> Multipliers:
    ratios, bounds = terms.ratios, terms.bounds
    if slopes is not None:
        ratios, bounds = [ratios[0], ratios[0] * slopes], [bounds[0], bounds[0]]
    largest = np.max([np.broadcast_to(np.abs(r), shape) for r in ratios], axis=0)
    _, exponent = np.frexp(largest)
    extra = np.abs(terms.bias) + terms.slack
    _, magnitude = np.frexp(extra)
    # multipliers below 2**30, a bias below 2**61
    shift = np.clip(np.minimum(30 - exponent, 61 - magnitude).astype(np.int64), 1, 52)
    values = _round(ratios, shift, False, None)
    offset = np.ceil(extra * np.exp2(shift))
    if np.any(offset >= 2.0**62):
        raise QuantizationError(
            f"layer {name!r}: its bias is {np.max(extra):g} output steps and leaves 64 bits; "
            "check the calibration data of this layer"
        )
    pairs = [(np.broadcast_to(b, shape), np.broadcast_to(v, shape))
             for b, v in zip(bounds, values, strict=True)]  # fmt: skip
    try:
        required_compute_dtype(
            pairs, np.broadcast_to(offset.astype(np.int64), shape), shift, terms.zero_point
        )
    except QuantizationError as error:
        raise QuantizationError(f"layer {name!r}: {error}") from None
    return Multipliers(tuple(values), shift, "int64")
