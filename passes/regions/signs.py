"""How an accumulator ends in the format of one bit: equation (3) with thresholds.

A binary tensor holds the level below the middle ``m`` of the format where a region is below what
that stands for, else the one above. With ``t`` an integer that is below 0 exactly where the region
is, equation (3) of `tvmquant.arithmetic` with a shift of 1 gives that:
``clip(((4 t + 1 + 1) >> 1) + m, m - 1, m + 1)``.

Of one tensor ``scale * (acc - z_a) + bias``, ``t`` is its distance from a threshold, which is found
exactly, in rational numbers: batch normalization before a sign is folded into it, whatever the sign
of its scale, 0 included. Of two tensors it is their sum with multipliers of `MULTIPLIER_BITS`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from tvmquant.arithmetic import INT32_MAX, Array, FloatArray, IntArray
from tvmquant.errors import QuantizationError
from tvmquant.passes.accumulator import Accumulator
from tvmquant.passes.multipliers import Multipliers

# What t is times, so that its neighbours differ by two steps and more
FACTOR = 4
MULTIPLIER_BITS = 27
# of channels that are multiplied by 0, whose weight has this scale
LEAST_SCALE = 2.0**-100


def sign_multipliers(
    region: Accumulator,
    name: str,
    *,
    strict: bool,
    middle: float = 0.0,
    span: tuple[Array, Array] | None = None,
) -> tuple[Multipliers, IntArray]:
    """Return multipliers, shift and offset of equation (3) that give the sign of a region.

    Parameters
    ----------
    region : Accumulator
        Its arrays may have any shapes that broadcast.
    name : str
        Of the layer, for the error message.
    strict : bool
        Whether the middle is below the threshold.
    middle : float
        What the middle of the format stands for.
    span : (integer array, integer array), optional
        Least and greatest value of the first term's integer less its zero point, where more is
        known than its bound.

    Raises
    ------
    QuantizationError
        If a scale is not finite.

    Notes
    -----
    Negative slopes are to be left out (`by_direction`).
    """
    arrays = (region.bias, region.offset, *(t.scale for t in region.terms))
    if not all(np.all(np.isfinite(a)) for a in arrays):
        raise QuantizationError(f"layer {name!r}: a scale or bias before its sign is not finite")
    always, never = _constant(region, strict, middle)
    region = replace(region, bias=region.bias - _crossing(region, middle), slopes=None, shift=None)
    if len(region.terms) > 1:
        chosen, offset = _of_sum(region, strict)
    else:
        chosen, offset = _of_one(region, strict, span)
    shape = np.broadcast_shapes(offset.shape, always.shape)
    kept = ~np.broadcast_to(always | never, shape)
    values = tuple(np.where(kept, value, 0) for value in chosen.values)
    offset = np.where(kept, offset, np.where(always, 1, 1 - FACTOR))
    return Multipliers(values, np.ones(shape, np.int64), chosen.compute_dtype), offset


def by_direction(
    region: Accumulator, middle: float, *, strict: bool
) -> tuple[Accumulator, Accumulator] | None:
    """Return two regions without negative slopes, one of which has a region's sign if it is above.

    Below 0 a region with a negative slope grows again, and may cross the middle there. None where
    no channel does: what a negative slope turns is above then as 0 is.
    """
    if region.slopes is None:
        return None
    zero = region.offset > middle if strict else region.offset >= middle
    turned = (region.slopes < 0.0) & ~zero
    if not np.any(turned):
        return None
    slopes = np.where(turned, region.slopes, 0.0)
    # the clip is of the result, and stays
    falling = replace(
        region,
        terms=tuple(replace(t, scale=t.scale * slopes) for t in region.terms),
        bias=np.where(turned, region.bias * slopes + region.offset, middle - 1.0),
        slopes=None,
        shift=None,
    )
    return replace(region, slopes=np.maximum(region.slopes, 0.0)), falling


def _crossing(region: Accumulator, middle: float) -> FloatArray:
    """Return what the sum is where slopes and shift make the middle of it."""
    if region.slopes is None:
        return np.full((1,) * region.bias.ndim, middle)
    wanted, slopes = np.broadcast_arrays(middle - region.offset, region.slopes)
    sloped = (wanted < 0.0) & (slopes > 0.0)
    return np.asarray(np.where(sloped, wanted / np.where(sloped, slopes, 1.0), wanted))


def _of_one(
    region: Accumulator, strict: bool, span: tuple[Array, Array] | None
) -> tuple[Multipliers, IntArray]:
    """Return what gives the sign of one tensor's scale times its integers plus a bias."""
    (term,) = region.terms
    low, high = (-term.bound, term.bound) if span is None else span
    scale, bias, low, high = np.broadcast_arrays(term.scale, region.bias, low, high)
    found = [
        _threshold(float(s), float(b), int(least), int(most), strict)
        for s, b, least, most in zip(scale.flat, bias.flat, low.flat, high.flat, strict=True)
    ]
    direction, distance = np.asarray(found, np.int64).reshape(-1, 2).T.reshape(2, *scale.shape)
    reach = np.maximum(np.abs(low), np.abs(high)) + np.abs(term.zero_point)
    greatest = FACTOR * (reach + np.abs(distance) + abs(term.zero_point) + 1)
    dtype = "int32" if int(greatest.max(initial=0)) < INT32_MAX else "int64"
    chosen = Multipliers((FACTOR * direction,), np.ones(scale.shape, np.int64), dtype)
    return chosen, FACTOR * distance + 1


def _threshold(scale: float, bias: float, low: int, high: int, strict: bool) -> tuple[int, int]:
    """Return d and c of ``t = d acc + c``, below 0 where ``scale acc + bias`` is (or is 0)."""
    if abs(scale) <= LEAST_SCALE:
        return 0, 0 if (bias > 0.0 or (bias == 0.0 and not strict)) else -1
    crossing = -Fraction(bias) / Fraction(scale)
    if scale > 0.0:  # from this integer on
        first = math.floor(crossing) + 1 if strict else math.ceil(crossing)
        return 1, -min(max(first, low), high + 1)
    last = math.ceil(crossing) - 1 if strict else math.floor(crossing)
    return -1, min(max(last, low - 1), high)


def _of_sum(region: Accumulator, strict: bool) -> tuple[Multipliers, IntArray]:
    """Return what gives the sign of a sum of tensors."""
    scales: list[FloatArray] = [np.asarray(t.scale, np.float64) for t in region.terms]
    *scales, bias = np.broadcast_arrays(*scales, region.bias)
    largest = np.max(np.abs(scales), axis=0)
    _, exponent = np.frexp(np.where(largest > 0.0, largest, 1.0))
    shift = MULTIPLIER_BITS - exponent.astype(np.int64)
    values = [np.rint(np.ldexp(s, shift)).astype(np.int64) for s in scales]
    distance = np.clip(np.rint(np.ldexp(bias, shift)), -(2.0**58), 2.0**58).astype(np.int64)
    ones = np.ones(bias.shape, np.int64)
    chosen = Multipliers(tuple(FACTOR * value for value in values), ones, "int64")
    return chosen, FACTOR * (distance - int(strict)) + 1


def _constant(region: Accumulator, strict: bool, middle: float) -> tuple[Array, Array]:
    """Return where a region is never below its threshold, and where it always is."""
    arrays = (region.bias, region.offset, *(t.scale for t in region.terms))
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    above = region.low > middle or (region.low == middle and not strict)
    below = region.high < middle or (region.high == middle and strict)
    always, never = np.full(shape, above), np.full(shape, below)
    if region.slopes is not None:
        # of 0, and of what slopes turn to the side of positive numbers
        zero = region.offset > middle if strict else region.offset >= middle
        always = always | ((region.slopes <= 0.0) & zero)
    return always, never & ~always
