"""The integer arithmetic of the project, defined once, in numpy.

Everything that computes (the simulator, the torch twin, every kernel on every target) agrees with
the functions of this file bit for bit.

Quantize (float border of the graph), ties to even as in ONNX ``QuantizeLinear``::

    q = clip(round_half_even(x / scale) + zero_point, qmin, qmax)                              (1)

Dequantize (float border of the graph), one float32 multiplication::

    x = float32(q - zero_point) * float32(scale)                                               (2)

Requantize, one rounding, ties up (towards +infinity), any number of integer terms::

    t = offset + sum_i (acc_i - z_i) * M_i
    q = clip(((t + 2**(s - 1)) >> s) + zero_point, qmin, qmax)                                 (3)

What is rounded to a scale that came with a model goes to even at ties, as ONNX ``QuantizeLinear``
does; with dyadic ratios of scales, such as those of a mean of four, ties are frequent::

    q = clip(((t + 2**(s - 1) - 1 + ((t >> s) & 1)) >> s) + zero_point, qmin, qmax)            (3e)

``M_i`` and ``s`` are integers per channel: the dyadic number ``M / 2**s`` stands for the real ratio
of scales (HAWQ-V3, Yao et al., 2021, eq. 4). A residual addition is (3) with two terms, so that it
too rounds once.

Where a range is found at run time, as ONNX ``DynamicQuantizeLinear`` finds it, over a whole tensor,
float32 throughout; scale 1 if the tensor is all zeros::

    scale = (max(x, 0) - min(x, 0)) / 255
    zero_point = clip(round_half_even(-min(x, 0) / scale), 0, 255)                             (4)

Real values of sums of products with integers of (4), in this order, no two operations fused::

    y = float32(acc - zero_point * sum(w)) * (scale * scale_w) + bias                          (5)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.errors import QuantizationError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

INT32_MAX = 2**31 - 1
# Fewer multiplier bits than this coarsen a snapped weight scale by more than 1/16.
MIN_NARROW_BITS = 5
# Shifts of the 32-bit path stay below this so that 2**(s - 1) and zero_point << s stay small.
MAX_NARROW_SHIFT = 22
# The greatest integer of a tensor whose range is found at run time.
DYNAMIC_QMAX = 255


def quantize_half_even(
    x: Array, scale: float, zero_point: int, qmin: int, qmax: int, dtype: str
) -> Array:
    """Quantize float32 values, equation (1).

    Parameters
    ----------
    x : float32 array of any shape
    scale : float, > 0; rounded to float32 first
    zero_point, qmin, qmax : int, qmin <= zero_point <= qmax
    dtype : str
        Integer type of the result; must hold [qmin, qmax].
    """
    with np.errstate(over="ignore"):  # infinity saturates as it should
        ratio = x.astype(np.float32, copy=False) / np.float32(scale)
    low, high = np.float32(qmin - zero_point), np.float32(qmax - zero_point)
    steps: Array = np.clip(np.rint(ratio), low, high).astype(np.int32) + np.int32(zero_point)
    return steps.astype(dtype)


def dequantize(q: Array, scale: Array | float, zero_point: int) -> Array:
    """Map integers back to float32, equation (2); ``scale`` broadcasts against ``q``."""
    steps = (q.astype(np.int64) - zero_point).astype(np.float32)
    real: Array = steps * np.asarray(scale, np.float32)
    return real


def dynamic_range(x: Array) -> Array:
    """Return scale and zero point of a tensor by its range, equation (4).

    Parameters
    ----------
    x : float32 array of any shape
        NaN is passed over. The scale of an infinite range is the greatest float32.

    Returns
    -------
    float32 array of shape (2,)
    """
    zero = np.float32(0.0)
    low, high = (ufunc.reduce(x, axis=None, initial=zero) for ufunc in (np.fmin, np.fmax))
    with np.errstate(over="ignore"):
        scale = (high - low) / np.float32(DYNAMIC_QMAX)
        scale = min(scale, np.finfo(np.float32).max) if scale > 0.0 else np.float32(1.0)
        zero_point = np.clip(np.rint(-low / scale), zero, np.float32(DYNAMIC_QMAX))
    return np.asarray([scale, zero_point], np.float32)


def quantize_by_range(x: Array, found: Array) -> Array:
    """Quantize float32 values to uint8, equation (1), by what `dynamic_range` found."""
    scale, zero_point = float(found[0]), int(found[1])
    return quantize_half_even(x, scale, zero_point, 0, DYNAMIC_QMAX, "uint8")


def real_sums(sums: Array, found: Array, scale: Array, bias: Array) -> Array:
    """Return the real values of sums of products, equation (5) without its zero point.

    Parameters
    ----------
    sums : integer array
        Of products of integers less their zero points, below ``2**31``.
    found : float32 array of shape (2,)
        Of `dynamic_range`.
    scale, bias : float32 arrays that broadcast against the sums
        Scale of the weight, and what is added to the real values.
    """
    with np.errstate(over="ignore"):
        real: Array = sums.astype(np.float32) * (found[0] * scale) + bias
    return real


def requantize(
    terms: Sequence[tuple[Array, int, Array]],
    offset: Array | int,
    shift: Array,
    zero_point: int,
    qmin: int,
    qmax: int,
    dtype: str,
    *,
    ties_to_even: bool = False,
) -> Array:
    """Combine integer terms and round once, equation (3), or (3e) where ties go to even.

    Parameters
    ----------
    terms : sequence of (acc, z, multiplier)
        ``acc`` integer array; ``z`` its zero point; ``multiplier`` integers that broadcast
        against ``acc``.
    offset : integers that broadcast against the result, at the scale of the sum
    shift : integers in [1, 62] that broadcast against the result
    zero_point, qmin, qmax : int
    dtype : str
        Integer type of the result.

    Notes
    -----
    Exact: sums are formed in 64 bits; the accumulator range analysis (`required_compute_dtype`)
    guarantees that they fit.
    """
    total = np.asarray(offset, np.int64)
    for acc, zero, multiplier in terms:
        total = total + (acc.astype(np.int64) - zero) * np.asarray(multiplier, np.int64)
    steps = np.asarray(shift, np.int64)
    half = np.int64(1) << (steps - 1)
    if ties_to_even:
        half = half - 1 + ((total >> steps) & 1)
    rounded: IntArray = (total + half) >> steps
    return np.clip(rounded + zero_point, qmin, qmax).astype(dtype)


def dot_bounds(weight: Array, low: int, high: int) -> tuple[IntArray, IntArray]:
    """Bound ``sum(x * w)`` per output channel for integers ``x`` in [low, high].

    Parameters
    ----------
    weight : integer array of shape (O, ...), output channels first
    low, high : int, low <= high

    Returns
    -------
    (least, greatest) : int64 arrays of shape (O,)
    """
    flat = weight.reshape(weight.shape[0], -1).astype(np.int64)
    positive = np.where(flat > 0, flat, 0).sum(axis=1)
    negative = np.where(flat < 0, flat, 0).sum(axis=1)
    return positive * low + negative * high, positive * high + negative * low


def required_compute_dtype(
    bounds: Sequence[tuple[Array, Array]], offset: Array, shift: Array, zero_point: int
) -> str:
    """Prove in which integer type equation (3) can be evaluated without overflow.

    Parameters
    ----------
    bounds : sequence of (bound, multiplier)
        ``bound`` >= |acc_i - z_i| and the multiplier M_i, per channel.
    offset, shift : integers per channel
    zero_point : int

    Returns
    -------
    str
        ``"int32"`` or ``"int64"``.

    Raises
    ------
    QuantizationError
        If even 64 bits do not suffice.
    """
    steps = np.asarray(shift, np.int64).astype(object)
    total = abs(np.asarray(offset, np.int64)).astype(object) + (abs(zero_point) + 1) * (2**steps)
    for bound, multiplier in bounds:
        total = total + np.asarray(bound, np.int64).astype(object) * np.asarray(
            abs(np.asarray(multiplier, np.int64)), np.int64
        ).astype(object)
    worst = max(int(v) for v in np.atleast_1d(total).ravel())
    if worst <= INT32_MAX:
        return "int32"
    if worst < 2**63:
        return "int64"
    raise QuantizationError(f"requantization needs more than 64 bits (|t| may reach {worst})")
