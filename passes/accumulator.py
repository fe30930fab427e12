"""What lies between two fake_quants, as sums of integers: how `InsertRequantize` sees a region.

A region computes ``clip(sum_i scale_i * (acc_i - z_i) + bias, low, high)`` in real numbers. Its
requantization divides by the output scale; `choose_multipliers` turns the ratios into dyadic
numbers and proves in which integer width equation (3) of `tvmquant.arithmetic` can be evaluated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

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
from tvmquant.formats import Format
from tvmquant.passes.scale_factors import compressed, is_uniform
from tvmquant.weight_pairs import bound_pairs

# A multiplier that is not exact may move the result by this much of one output step.
MAX_MULTIPLIER_ERROR = 1.0 / 32.0
# The multiplier of negative sums is one of few bits times the slope, rounded: it may move the least
# or greatest number of the output by this much of one step (what rounding to steps adds grows by
# 6 % at most), others by proportion.
MAX_SLOPE_ERROR = 1.0 / 4.0
# Scales are stored in float32: a ratio that is so close to a dyadic number, relatively, is one.
STORED_PRECISION = 2.0**-22
# A channel whose accumulator cannot move the output further than this may have any multiplier.
NEGLIGIBLE_STEPS = 8.0


@dataclass(frozen=True)
class Quantized:
    """A tensor of integers: real value = scale * factors * (q - zero_point), q in [qmin, qmax].

    Parameters
    ----------
    expr : relax.Expr
    scale : float
    zero_point, qmin, qmax : int
    format : Format
    factors : float64 array, optional
        Of the tensor's rank, broadcast against it, the largest 1 (`scale_factors`); None where
        the tensor has one scale.
    """

    expr: relax.Expr
    scale: float
    zero_point: int
    qmin: int
    qmax: int
    format: Format
    factors: FloatArray | None = None

    @classmethod
    def of(
        cls,
        expr: relax.Expr,
        scales: FloatArray,
        zero_point: int,
        qmin: int,
        qmax: int,
        format: Format,
    ) -> Quantized:
        """Return a tensor whose scales are an array that broadcasts against it."""
        scale = float(scales.max())
        factors = None if is_uniform(scales) else compressed(scales / scale)
        return cls(expr, scale, zero_point, qmin, qmax, format, factors)

    @property
    def dtype(self) -> str:
        """Type of q."""
        return str(self.format.container)

    @property
    def bound(self) -> int:
        """The largest |q - zero_point|."""
        return max(self.qmax - self.zero_point, self.zero_point - self.qmin)

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.expr.ty.shape.values)

    @property
    def scales(self) -> FloatArray:
        """The scale as an array of the tensor's rank that broadcasts against it."""
        return self.scale * (np.ones((1,) * self.rank) if self.factors is None else self.factors)

    def same_parameters(self, other: Quantized) -> bool:
        """Whether both map integers to real values alike."""
        alike = (self.scale, self.zero_point, self.dtype) == (
            other.scale,
            other.zero_point,
            other.dtype,
        )
        if self.factors is None or other.factors is None:
            return alike and self.factors is other.factors
        return alike and np.array_equal(self.factors, other.factors)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight before rounding: float values (output channels first) and scale per channel.

    Parameters
    ----------
    values : float32 array (O, ...)
    scale : float64 array (O,) of float32 numbers
        0 where none is chosen yet.
    format : Format
    bounded : bool
        Neighbours must fit 16 bits (`tvmquant.weight_pairs`).
    multiplier : float32 array like values, optional
        Of the step of each value: of its group (`tvmquant.quantizer.grouped_weight_scales`), over
        the factor of its input's scale.
    factors : float64 array that broadcasts against values, optional
        Of the scales of the integers that the weight multiplies (`scale_factors`):
        ``sum_c w_c (f_c x_c) = sum_c (w_c f_c) x_c``.
    """

    values: npt.NDArray[np.float32]
    scale: FloatArray
    format: Format
    bounded: bool = False
    multiplier: npt.NDArray[np.float32] | None = None
    factors: FloatArray | None = None

    @property
    def seen(self) -> FloatArray:
        """What the integers stand for in steps of one size per channel: values times factors."""
        values = self.values.astype(np.float64)
        return values if self.factors is None else values * self.factors

    @property
    def group_multiplier(self) -> Array | None:
        """What the levels of each group are times, int8 like values; None without groups."""
        if not self.format.group or self.multiplier is None:
            return None
        factors = 1.0 if self.factors is None else self.factors
        return np.asarray(np.rint(self.multiplier * factors).astype(np.int8))

    def levels(self, scale: FloatArray) -> Array:
        """Return the levels of the weight at ``scale``, int8, ties to even.

        The quotient is that of float32 numbers, as in equation (1).
        """
        unit = scale.astype(np.float32).reshape((-1,) + (1,) * (self.values.ndim - 1))
        if self.multiplier is not None:
            unit = unit * self.multiplier
        levels = self.format.round(self.values / unit)
        return bound_pairs(levels) if self.bounded else levels

    def round(self, scale: FloatArray) -> Array:
        """Return the integers of the weight at ``scale``: levels, times multipliers of groups."""
        levels, multiplier = self.levels(scale), self.group_multiplier
        return levels if multiplier is None else np.asarray(levels * multiplier)


def factors_per_input(
    factors: FloatArray, groups: int, weight_shape: tuple[int, ...]
) -> FloatArray:
    """Shape one factor per input channel so that it broadcasts against a weight.

    Parameters
    ----------
    factors : float64 array (I,)
    groups : int
    weight_shape : tuple of int
        (O, I / groups, ...), the output channels of a group side by side.
    """
    outputs, inputs = weight_shape[:2]
    by_group = np.repeat(factors.reshape(groups, inputs), outputs // groups, axis=0)
    return by_group.reshape(outputs, inputs, *(1,) * (len(weight_shape) - 2))


@dataclass(frozen=True)
class Contraction:
    """A convolution or dense layer that is not emitted yet, since its weight scale may move."""

    call: relax.Call
    x: Quantized
    weight: QuantizedWeight


@dataclass(frozen=True)
class Term:
    """One term ``scale * (acc - zero_point)``; arrays have the region's rank and broadcast."""

    scale: FloatArray
    bound: Array
    zero_point: int = 0
    expr: relax.Expr | None = None
    contraction: Contraction | None = None


@dataclass(frozen=True)
class Accumulator:
    """A region: sum of terms plus a real bias, clipped to [low, high].

    With slopes, what is below 0 is multiplied by them before it is clipped; the one term then has
    no bias, or is a contraction, which takes it in.

    Scales and bias are arrays of the region's rank, with extent 1 along the batch.
    """

    terms: tuple[Term, ...]
    bias: FloatArray
    low: float = -math.inf
    high: float = math.inf
    slopes: FloatArray | None = None

    def clipped(self, low: float, high: float) -> Accumulator:
        """Clip further."""
        return replace(self, low=min(max(self.low, low), high), high=max(min(self.high, high), low))

    def scaled(self, factor: FloatArray) -> Accumulator:
        """Multiply by constants (positive where a clip has happened)."""
        bounds: dict[str, Any] = {}
        if math.isfinite(self.low) or math.isfinite(self.high):
            single = float(factor.reshape(-1)[0])
            bounds = {"low": self.low * single, "high": self.high * single}
        terms = tuple(replace(t, scale=t.scale * factor) for t in self.terms)
        return replace(self, terms=terms, bias=self.bias * factor, **bounds)

    def shifted(self, constant: FloatArray) -> Accumulator:
        """Add constants."""
        return replace(self, bias=self.bias + constant)

    def of_rank(self, rank: int) -> Accumulator:
        """Return the region with leading axes added to its arrays, as broadcasting does."""

        def grown(array: Array) -> Array:
            return array.reshape((1,) * (rank - array.ndim) + array.shape)

        terms = tuple(replace(t, scale=grown(t.scale), bound=grown(t.bound)) for t in self.terms)
        slopes = None if self.slopes is None else grown(self.slopes)
        return replace(self, terms=terms, bias=grown(self.bias), slopes=slopes)

    def plus(self, other: Accumulator) -> Accumulator:
        """Add another region's terms."""
        return replace(self, terms=self.terms + other.terms, bias=self.bias + other.bias)


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
    narrow = _narrow(terms, snap_first, shape, slopes, reach)
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
    if np.any(np.asarray(moved) > MAX_MULTIPLIER_ERROR):
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
