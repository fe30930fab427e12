"""Weights whose neighbours fit 16 bits: what makes ``vpmaddubsw`` exact.

AVX2 processors without VNNI multiply bytes with ``vpmaddubsw``, which adds two products and
*saturates* the sum at 16 bits. With an unsigned 8-bit activation up to 255 the sum cannot saturate
if two neighbouring weights of one sign add up to at most 128::

    255 * (|w0| + |w1|) <= 255 * 128 = 32640 < 2**15

Other tools use 7-bit weights there (halving the resolution of every weight) or let sums saturate.
Here each pair that would saturate gives up its excess, half from either weight, at a per-channel
scale chosen to minimise the error of both rounding and bounding; a layer that would lose more than
`MAX_LOSS_DB` keeps its weights, and its kernel multiplies 16-bit words instead (exact as well,
about a fifth slower).
"""

from __future__ import annotations

import numpy as np

from tvmquant.arithmetic import Array, FloatArray

PAIR_LIMIT = 128
# Weight signal-to-noise ratio that bounding may cost a layer, in decibels. SqueezeNet, 900 images,
# by this limit (layers bounded; agreement with float, logit SQNR): 0 (0 of 26; 95.6 %, 33.7 dB),
# 3 (14; 95.0 %, 33.2 dB), 4 (17; 95.8 %, 32.8 dB), 5 (18; 95.3 %, 32.6 dB), 20 (25; 91.4 %, 26 dB)
MAX_LOSS_DB = 4.0
# Coarser scales that are tried: fewer pairs then exceed the limit.
SCALE_FACTORS = (1.0, 1.07, 1.15, 1.25, 1.4, 1.6)


def runs_of(weight: Array) -> Array:
    """Return a weight with its reduced axes in the order kernels read them.

    Parameters
    ----------
    weight : array (O, I, kh, kw) or (O, I)

    Returns
    -------
    array of shape (O, kh, kw * I) or (O, 1, I), a view or a copy
    """
    if weight.ndim == 2:
        return weight[:, None, :]
    outputs, inputs, height, width = weight.shape
    return weight.transpose(0, 2, 3, 1).reshape(outputs, height, width * inputs)


def weight_of(runs: Array, shape: tuple[int, ...]) -> Array:
    """Return the weight of a shape (O, I, kh, kw) or (O, I) whose `runs_of` these are."""
    if len(shape) == 2:
        return runs[:, 0]
    outputs, inputs, height, width = shape
    blocks = runs.reshape(outputs, height, width, inputs)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 2))


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
    runs = runs_of(weight).astype(np.int16)
    even = runs.shape[2] & ~1
    first, second = runs[:, :, 0:even:2], runs[:, :, 1:even:2]
    excess = np.abs(first) + np.abs(second) - PAIR_LIMIT
    excess = np.where((excess > 0) & ((first ^ second) >= 0), excess, 0)
    if not excess.any():
        return weight
    sign = np.where(first < 0, -1, 1).astype(np.int16)
    half = excess >> 1
    bounded = runs.copy()
    bounded[:, :, 0:even:2] = first - sign * (excess - half)
    bounded[:, :, 1:even:2] = second - sign * half
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
    real = weight.astype(np.float32)
    shape = (-1,) + (1,) * (real.ndim - 1)
    best = np.full(real.shape[0], np.inf)
    chosen = scale.copy()
    free = 0.0
    for factor in SCALE_FACTORS:
        trial = scale * factor
        steps = trial.astype(np.float32).reshape(shape)
        rounded = np.clip(np.rint(real / steps), -127, 127).astype(np.int8)
        if factor == 1.0:
            free = float(_errors(real, rounded, steps).sum())
        error = _errors(real, bound_pairs(rounded), steps)
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, trial, chosen)
    if best.sum() > free * 10 ** (MAX_LOSS_DB / 10):
        return None
    return chosen


def _errors(real: Array, rounded: Array, steps: Array) -> FloatArray:
    """Return the squared error of every output channel."""
    difference = rounded.astype(np.float32) * steps - real
    flat = difference.reshape(real.shape[0], -1)
    return np.asarray(np.einsum("ok,ok->o", flat, flat), np.float64)
