"""Weights whose neighbours fit 16 bits: what makes ``vpmaddubsw`` exact.

AVX2 processors without VNNI multiply bytes with ``vpmaddubsw``, which adds two products and
*saturates* the sum at 16 bits. With an unsigned 8-bit activation up to 255 the sum cannot saturate
if two neighbouring weights of one sign add up to at most 128::

    255 * (|w0| + |w1|) <= 255 * 128 = 32640 < 2**15

Other tools use 7-bit weights there (halving the resolution of every weight) or let sums saturate.
Here each pair that would saturate gives up its excess, half from either weight, at a per-channel
scale chosen to minimise the error of both rounding and bounding; a layer that would lose more than
`MAX_LOSS_DB` keeps its weights, and its kernel multiplies 16-bit words instead (exact as well,
about a fifth slower). Neighbours are those of `tvmquant.run_layout`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvmquant.arithmetic import Array, FloatArray
from tvmquant.run_layout import runs_of, weight_of

PAIR_LIMIT = 128
# Weight signal-to-noise ratio that bounding may cost a layer, in decibels. SqueezeNet, 900 images,
# by this limit (top-1, agreement with float, logit SQNR): 0, no layer (59.7 %, 96.6 %, 34.3 dB);
# 2.4, all but two (60.1 %, 95.4 %, 33.9 dB); 4, all 26 (60.3 %, 95.0 %, 33.1 dB)
MAX_LOSS_DB = 4.0
# Coarser scales that are tried: fewer pairs then exceed the limit, and at twice the scale, none.
# With six factors up to 1.6, 9 of 26 layers of SqueezeNet and 9 of 54 of ResNet-50 lose more than
# 4 dB; with these, none.
SCALE_FACTORS = tuple(1 + step / 20 for step in range(21))
# Then those beside the best of them: of random weights of 12, 24, 64 and 576 values per channel the
# error is less by 0.8, 0.5, 0.4 and 0.1 dB.
NEARER_STEPS = (-0.04, -0.03, -0.02, -0.01, 0.01, 0.02, 0.03, 0.04)
# Weights for which the scales are tried together: their copies fit a core's cache.
TRIED = 1 << 15


def outputs_first(weight: Array, axis: int, groups: int) -> Array:
    """Return the weight of a layer as (O, I / groups, ...).

    Parameters
    ----------
    weight : array
        Of a convolution (O, I / groups, kh, kw), a transposed one (I, O / groups, kh, kw), or a
        dense layer (I, O).
    axis : int
        Of the outputs, 0 or 1.
    groups : int
    """
    if axis == 0:
        return weight
    if weight.ndim == 2:
        return weight.T
    inputs, outputs, *kernel = weight.shape
    by_group = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
    return by_group.reshape(groups * outputs, inputs // groups, *kernel)


def outputs_back(weight: Array, axis: int, groups: int) -> Array:
    """Undo `outputs_first`."""
    if axis == 0:
        return weight
    if weight.ndim == 2:
        return weight.T
    outputs, inputs, *kernel = weight.shape
    by_group = weight.reshape(groups, outputs // groups, inputs, *kernel).swapaxes(1, 2)
    return by_group.reshape(groups * inputs, outputs // groups, *kernel)


def bound_pairs(weight: Array) -> Array:
    """Reduce neighbours of one sign until their magnitudes add up to `PAIR_LIMIT` at most.

    Parameters
    ----------
    weight : int8 array (O, I, kh, kw) or (O, I), values in [-127, 127]

    Returns
    -------
    int8 array of the same shape
        Neighbours are (0, 1), (2, 3), ... along each row of `runs_of`.
    """
    bounded = runs_of(weight).astype(np.int16)
    if not _bound(bounded):
        return weight
    return weight_of(bounded, weight.shape).astype(np.int8)


def bounded_scale(weight: FloatArray, scale: FloatArray) -> FloatArray | None:
    """Choose per-channel scales for bounded pairs.

    Parameters
    ----------
    weight : float array (O, I, kh, kw) or (O, I)
    scale : float64 array (O,)
        Best scales without bounding.

    Returns
    -------
    float64 array (O,), or None where the layer would lose more than `MAX_LOSS_DB`.
    """
    runs = np.ascontiguousarray(runs_of(weight), np.float32)
    together = max(1, TRIED // max(1, runs[0].size))
    chosen, free, best = scale.copy(), 0.0, 0.0
    for first in range(0, len(runs), together):
        block = slice(first, first + together)
        chosen[block], lost = _best_scales(runs[block], scale[block])
        best += lost
        free += float(_errors(runs[block], scale[block], bound=False).sum())
    if best > free * 10 ** (MAX_LOSS_DB / 10):
        return None
    return chosen


def _best_scales(runs: Array, scale: FloatArray) -> tuple[FloatArray, float]:
    """Return the best of the scales tried for every output channel, and the error with them."""
    errors = np.stack([_errors(runs, scale * factor, bound=True) for factor in SCALE_FACTORS])
    coarse, best = np.asarray(SCALE_FACTORS)[errors.argmin(axis=0)], errors.min(axis=0)
    factors = coarse
    for step in NEARER_STEPS:
        nearer = np.clip(coarse + step, SCALE_FACTORS[0], SCALE_FACTORS[-1])
        error = _errors(runs, scale * nearer, bound=True)
        factors, best = np.where(error < best, nearer, factors), np.minimum(error, best)
    return scale * factors, float(best.sum())


def _errors(runs: Array, scale: FloatArray, *, bound: bool) -> FloatArray:
    """Return the squared error that rounding, and bounding, adds to every output channel."""
    steps = scale.astype(np.float32)[:, None, None]
    rounded = np.clip(np.rint(runs / steps), -127, 127)
    if bound:
        bounded = rounded.astype(np.int16)
        if _bound(bounded):
            rounded = bounded.astype(np.float32)
    difference = (rounded * steps - runs).reshape(len(runs), -1)
    return np.asarray(np.einsum("ok,ok->o", difference, difference), np.float64)


def _bound(runs: npt.NDArray[np.int16]) -> bool:
    """Bound the pairs of rows in place; say whether there was one to bound."""
    even = runs.shape[2] & ~1
    first, second = runs[:, :, 0:even:2], runs[:, :, 1:even:2]
    # of two signs, the sum is at most the larger magnitude: below the limit
    excess = np.abs(first + second) - np.int16(PAIR_LIMIT)
    np.maximum(excess, 0, out=excess)
    if not excess.any():
        return False
    half = excess >> 1
    sign = np.sign(first + second)
    first -= sign * (excess - half)
    second -= sign * half
    return True
