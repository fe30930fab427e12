"""Quantizers of given data: the scale and zero point of a range, the scales of a weight."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tvmquant.errors import QuantizationError
from tvmquant.formats import GROUP_LEVELS
from tvmquant.run_layout import runs_of, weight_of

Scheme = Literal["symmetric", "unsigned", "asymmetric", "auto"]
SCHEMES: tuple[str, ...] = get_args(Scheme)
WEIGHT_METHODS = ("mse", "minmax")

# Scales stay normal float32 numbers, because they are stored as such in ONNX.
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


def check_scheme(scheme: str) -> None:
    """Raise `QuantizationError` unless activations can be quantized so."""
    if scheme not in SCHEMES:
        raise QuantizationError(f"scheme {scheme!r} is unknown; expected {_either(SCHEMES)}")


def check_weight_method(method: str) -> None:
    """Raise `QuantizationError` unless weight scales can be chosen so."""
    if method not in WEIGHT_METHODS:
        raise QuantizationError(
            f"weight method {method!r} is unknown; expected {_either(WEIGHT_METHODS)}"
        )


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def affine_parameters(
    lo: float, hi: float, *, bits: int = 8, scheme: Scheme = "auto"
) -> tuple[float, int, int, int]:
    """Return the quantizer ``q = clip(round(x / scale) + zero_point, qmin, qmax)`` of a range.

    Parameters
    ----------
    lo, hi : float
        Range in real units, lo <= hi. It is extended to hold 0, which is always exact.
    bits : int
        Bit width: 2..16, and 1 for "unsigned" and "asymmetric".
    scheme : {"symmetric", "unsigned", "asymmetric", "auto"}
        Symmetric: signed levels -(2^(bits-1) - 1)..2^(bits-1) - 1, zero point 0. Unsigned: levels
        0..2^bits - 1, zero point 0; needs lo >= 0. Asymmetric: levels 0..2^bits - 1, zero point
        ``-lo / scale`` rounded half up. Auto: unsigned where lo >= 0, else symmetric.

    Returns
    -------
    scale : float
        Positive and a normal float32 even for an empty range, where it is 1.
    zero_point, qmin, qmax : int

    Raises
    ------
    QuantizationError
        When the range is not finite or reversed, or bits or scheme do not exist.

    Examples
    --------
    >>> affine_parameters(-1.0, 1.27)
    (0.01, 0, -127, 127)
    """
    lo, hi = float(lo), float(hi)
    if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
        raise QuantizationError(f"range ({lo}, {hi}); expected finite lo <= hi")
    if scheme == "auto":
        scheme = "unsigned" if lo >= 0.0 else "symmetric"
    check_scheme(scheme)
    least_bits = 2 if scheme == "symmetric" else 1
    if not least_bits <= bits <= 16:
        raise QuantizationError(
            f"bits = {bits} with scheme {scheme!r}; expected {least_bits} <= bits <= 16"
        )
    if scheme == "symmetric":
        qmax = (1 << (bits - 1)) - 1
        return _positive_scale(max(-lo, hi, 0.0) / qmax), 0, -qmax, qmax
    qmax = (1 << bits) - 1
    if scheme == "unsigned":
        if lo < 0.0:
            raise QuantizationError(
                f"scheme 'unsigned' cannot represent the range ({lo}, {hi}); use 'symmetric' or "
                "'asymmetric', or clip at 0 first"
            )
        return _positive_scale(hi / qmax), 0, 0, qmax
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = _positive_scale((hi - lo) / qmax)
    return scale, min(math.floor(-lo / scale + 0.5), qmax), 0, qmax


def weight_scales(
    w: NDArray[np.floating[Any]],
    axis: int | None = 0,
    bits: int = 8,
    method: str = "minmax",
) -> NDArray[np.float64]:
    """Return the symmetric scale of each channel of a weight.

    Parameters
    ----------
    w : array of float, any shape
    axis : int or None
        Axis of the output channels; None for one scale over the whole weight.
    bits : int
        Bit width, 2..16; the levels are -(2^(bits-1) - 1)..2^(bits-1) - 1.
    method : {"minmax", "mse"}
        Scale by the largest |w|, or by the clipping threshold between 20 % and 100 % of it, in
        steps of 1 %, that minimises the squared error of the channel. Never worse than minmax.

    Returns
    -------
    array of float64, shape (channels,), or (1,) where `axis` is None
        Positive. A channel of zeros gets the largest scale of the others, so that it does not
        stretch the range of the scales; 1 where all weights are zero.

    Raises
    ------
    QuantizationError
        When a weight is NaN or infinite, or an argument is out of range.
    """
    check_weight_method(method)
    if not 2 <= bits <= 16:
        raise QuantizationError(f"bits = {bits} for a weight; expected 2 <= bits <= 16")
    w = np.asarray(w, np.float32)
    rows = w.reshape(1, -1) if axis is None else np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    largest = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    if not np.isfinite(largest).all():
        raise QuantizationError(
            f"weight of shape {w.shape} holds NaN or Inf in channel "
            f"{int(np.argmin(np.isfinite(largest)))}; repair the model"
        )
    qmax = (1 << (bits - 1)) - 1
    scales = largest / qmax
    nonzero = scales > 0.0
    if method == "mse":
        scales[nonzero] *= _best_clip_ratios(rows[nonzero], scales[nonzero], qmax)
    scales[~nonzero] = scales.max(initial=0.0) or 1.0
    result: NDArray[np.float64] = np.maximum(scales, _LEAST_SCALE)
    return result


def binary_weight_scales(w: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the scale of each channel of a weight of one bit: its mean magnitude.

    That is the scale of least squared error (XNOR-Net, Rastegari et al., 2016, eq. 6).

    Parameters
    ----------
    w : array of float, output channels first

    Returns
    -------
    array of float64, shape (channels,)
        Positive. A channel of zeros gets the least normal float32.
    """
    scale = np.abs(w.reshape(len(w), -1).astype(np.float64)).mean(axis=1)
    result: NDArray[np.float64] = np.maximum(scale, _LEAST_SCALE)
    return result


def grouped_weight_scales(
    w: NDArray[np.floating[Any]], group: int, axis: int = 0, bits: int = 4
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Return the symmetric scale of each channel and the multiplier of each group of a weight.

    The step of a value is ``scale[channel] * multiplier``, so that sums over groups can be added
    in integers. Each group's own best step (clipping between 50 % and 100 % of its largest value,
    by squared error) is rounded to a multiple of 1/`GROUP_LEVELS` of the channel's greatest.

    Parameters
    ----------
    w : array of float, (O, I, kh, kw), or (O, I), or (I, O) with axis 1
    group : int
        Neighbours along each row of `tvmquant.run_layout.runs_of` that share a multiplier.
    axis : int
        Axis of the output channels.
    bits : int
        Bit width, 2..4, so that multiples fit 8 bits.

    Returns
    -------
    scale : array of float64, shape (O,)
    multiplier : array of int8, shape of ``w``, 1..`GROUP_LEVELS`
    """
    w = np.moveaxis(np.asarray(w, np.float32), axis, 0)
    runs = runs_of(w)
    outputs, rows, length = runs.shape
    groups = -(-length // group)
    padded = np.zeros((outputs, rows, groups * group), np.float32)
    padded[:, :, :length] = runs
    steps = _group_steps(padded.reshape(-1, group), bits).reshape(outputs, rows, groups)
    largest = steps.reshape(outputs, -1).max(axis=1)
    scale = np.where(largest > 0.0, largest, largest.max(initial=0.0) or 1.0) / GROUP_LEVELS
    ratio = np.rint(steps / scale[:, None, None])
    multiplier = np.clip(ratio, 1, GROUP_LEVELS).astype(np.int8)
    spread = np.repeat(multiplier, group, axis=2)[:, :, :length]
    return np.maximum(scale, _LEAST_SCALE), np.moveaxis(weight_of(spread, w.shape), 0, axis)


def _group_steps(rows: NDArray[np.float32], bits: int) -> NDArray[np.float64]:
    """Return each row's step of least squared error."""
    qmax = np.float32((1 << (bits - 1)) - 1)
    whole = np.abs(rows).max(axis=1) / qmax
    best = np.full(len(rows), np.inf, np.float32)
    chosen = whole.copy()
    divisor = np.where(whole > 0.0, whole, 1.0)[:, None]
    units = np.abs(rows) / divisor
    for percent in range(100, 49, -5):
        ratio = np.float32(percent / 100.0)
        error = np.minimum(np.rint(units / ratio), qmax) * ratio - units
        squared = np.einsum("rk,rk->r", error, error)
        better = squared < best
        best, chosen = np.where(better, squared, best), np.where(better, whole * ratio, chosen)
    return np.asarray(chosen, np.float64)


def _best_clip_ratios(
    rows: NDArray[np.float32], scales: NDArray[np.float64], qmax: int
) -> NDArray[np.float64]:
    """Return each row's factor on its scale that minimises its squared quantization error."""
    best = np.ones(len(rows))
    for index, (row, scale) in enumerate(zip(rows, scales, strict=True)):
        magnitudes = np.abs(row) / np.float32(scale)
        coarse = _squared_errors(magnitudes, np.arange(20, 101, 5) / 100.0, qmax)
        centre = 20 + 5 * int(np.argmin(coarse))
        # From 1 downwards, so that equal errors keep the wider range.
        ratios = np.arange(min(centre + 4, 100), max(centre - 5, 19), -1) / 100.0
        ratios = np.append(1.0, ratios)
        best[index] = ratios[np.argmin(_squared_errors(magnitudes, ratios, qmax))]
    return best


def _squared_errors(
    magnitudes: NDArray[np.float32], ratios: NDArray[np.float64], qmax: int
) -> NDArray[np.float64]:
    """Return the sum of squared errors of clipping at each of the `ratios` of `qmax`."""
    errors = np.empty(len(ratios))
    for index, ratio in enumerate(ratios):
        levels = np.minimum(np.rint(magnitudes / np.float32(ratio)), np.float32(qmax))
        levels *= np.float32(ratio)
        levels -= magnitudes
        errors[index] = np.dot(levels, levels)
    return errors


def _positive_scale(scale: float) -> float:
    return max(scale, _LEAST_SCALE) if scale > 0.0 else 1.0
