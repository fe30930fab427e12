"""What lies between two fake_quants, as sums of integers: how `InsertRequantize` sees a region.

A region computes ``clip(sum_i scale_i * (acc_i - z_i) + bias, low, high)`` in real numbers. Its
requantization divides by the output scale (`tvmquant.passes.multipliers`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from tvmquant.arithmetic import (
    Array,
    FloatArray,
    IntArray,
)
from tvmquant.formats import Format
from tvmquant.passes.scale_factors import compressed, is_uniform
from tvmquant.weight_pairs import bound_pairs


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
    imported : bool
        Scale and zero point came with a model of others: what is rounded to them is to be exact,
        with ties to even.
    strict : bool
        Of a binary tensor: whether its middle is rounded down.
    """

    expr: relax.Expr
    scale: float
    zero_point: int
    qmin: int
    qmax: int
    format: Format
    factors: FloatArray | None = None
    imported: bool = False
    strict: bool = False

    @classmethod
    def of(
        cls,
        expr: relax.Expr,
        scales: FloatArray,
        zero_point: int,
        qmin: int,
        qmax: int,
        format: Format,
        *,
        imported: bool = False,
    ) -> Quantized:
        """Return a tensor whose scales are an array that broadcasts against it."""
        scale = float(scales.max())
        factors = None if is_uniform(scales) else compressed(scales / scale)
        return cls(expr, scale, zero_point, qmin, qmax, format, factors, imported)

    @property
    def dtype(self) -> str:
        """Type of q."""
        return str(self.format.container)

    @property
    def bound(self) -> int:
        """The largest |q - zero_point|."""
        return max(self.qmax - self.zero_point, self.zero_point - self.qmin)

    @property
    def levels(self) -> int:
        """Number of integers that it may hold."""
        return self.qmax - self.qmin + 1

    @property
    def middle(self) -> float:
        """What lies between the two levels of a binary tensor, as a real number."""
        return self.scale * (self.qmin + 1 - self.zero_point)

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
    zero_point : int array (O,), optional
        Of a weight that came with the model, whose values lie on its levels; None of others, which
        have zero point 0.
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
    zero_point: IntArray | None = None
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
        if self.zero_point is not None:
            zero = self.zero_point.reshape((-1,) + (1,) * (self.values.ndim - 1))
            return np.asarray((np.rint(self.values / unit) + zero).astype(np.int8))
        levels = self.format.round(self.values / unit)
        return bound_pairs(levels) if self.bounded else levels

    def steps(self, scale: FloatArray) -> Array:
        """Return what the integers of the weight stand for, in steps: less their zero point."""
        integers = self.round(scale).astype(np.int64)
        if self.zero_point is None:
            return integers
        return integers - self.zero_point.reshape((-1,) + (1,) * (self.values.ndim - 1))

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
    """A convolution or dense layer, emitted where its region ends: `FixScales` moves its scale.

    Parameters
    ----------
    call : relax.Call
    x : Quantized
    weight : QuantizedWeight
    dynamic : bool
        The scale of its input is found at run time; a convolution's padding is a part of that.
    """

    call: relax.Call
    x: Quantized
    weight: QuantizedWeight
    dynamic: bool = False


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

    With slopes, what is below 0 is multiplied by them, and ``shift`` is added, before it is
    clipped; the one term then has no bias, or is a contraction, which takes it in.

    Scales and bias are arrays of the region's rank, with extent 1 along the batch.
    """

    terms: tuple[Term, ...]
    bias: FloatArray
    low: float = -math.inf
    high: float = math.inf
    slopes: FloatArray | None = None
    shift: FloatArray | None = None

    @property
    def offset(self) -> FloatArray:
        """What is added last of all: with slopes the shift, else the bias."""
        if self.slopes is None:
            return self.bias
        return np.zeros((1,) * self.bias.ndim) if self.shift is None else self.shift

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
        shift = None if self.shift is None else self.shift * factor
        return replace(self, terms=terms, bias=self.bias * factor, shift=shift, **bounds)

    def shifted(self, constant: FloatArray) -> Accumulator:
        """Add constants."""
        if self.slopes is not None:
            return replace(self, shift=self.offset + constant)
        return replace(self, bias=self.bias + constant)

    def of_rank(self, rank: int) -> Accumulator:
        """Return the region with leading axes added to its arrays, as broadcasting does."""

        def grown(array: Array) -> Array:
            return array.reshape((1,) * (rank - array.ndim) + array.shape)

        terms = tuple(replace(t, scale=grown(t.scale), bound=grown(t.bound)) for t in self.terms)
        slopes, shift = (None if a is None else grown(a) for a in (self.slopes, self.shift))
        return replace(self, terms=terms, bias=grown(self.bias), slopes=slopes, shift=shift)

    def flattened(self) -> Accumulator:
        """Return the region with arrays of shape (1,) or (O,), which vary along one axis."""
        terms = tuple(
            replace(t, scale=t.scale.reshape(-1), bound=np.reshape(t.bound, -1)) for t in self.terms
        )
        slopes, shift = (None if a is None else a.reshape(-1) for a in (self.slopes, self.shift))
        return replace(self, terms=terms, bias=self.bias.reshape(-1), slopes=slopes, shift=shift)

    def plus(self, other: Accumulator) -> Accumulator:
        """Add another region's terms."""
        return replace(self, terms=self.terms + other.terms, bias=self.bias + other.bias)
