"""Observers: stream activations, keep fixed-size statistics, choose the range to quantize.

Every observer sees a tensor's values batch by batch and ends with a range (lo, hi) in real units;
`affine_parameters` turns a range into (scale, zero_point, qmin, qmax). Weights need no streaming:
`weight_scales` works on the whole array.

The observers that look at a distribution (percentile, entropy, mse) share one histogram. Its bin
width is a power of two and bin k covers [k w, (k + 1) w), so widening is an exact merge of
neighbours and the result does not depend on how the data were split into batches.

Exact zeros are counted apart from the histogram and take no part in the choice of a range: after a
ReLU they can be most of the data, yet real 0 is always represented exactly, is never clipped and
tells nothing about where to clip. Percentiles and divergences are those of the nonzero values.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tvmquant.errors import DataError, QuantizationError

State = dict[str, NDArray[Any]]
Scheme = Literal["symmetric", "unsigned", "asymmetric", "auto"]

# Bins are never narrower: the factor 1 / width must be a finite float32, and ranges below 1e-33 are
# zero for every purpose.
_MIN_EXPONENT = -120
# Elements binned at a time: 21 bytes of each, 1.4 MB, stay close to the core.
_CHUNK = 1 << 16
# Scales stay normal float32 numbers, because they are stored as such in ONNX.
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


class Observer(ABC):
    """Accumulate statistics of one tensor over batches, in memory that does not grow.

    Attributes
    ----------
    count : int
        Number of values seen.
    low, high : float
        Least and greatest value seen.
    """

    method: str

    def __init__(self) -> None:
        self.count = 0
        self.low = math.inf
        self.high = -math.inf

    def update(self, array: NDArray[np.floating[Any]]) -> None:
        """Take in one batch of values.

        Parameters
        ----------
        array : array of float32, any shape
            An empty array changes nothing; other dtypes are converted.

        Raises
        ------
        DataError
            When a value is NaN or infinite; the statistics are then unchanged.
        """
        values = np.ascontiguousarray(array, np.float32).reshape(-1)
        if values.size == 0:
            return
        # Both propagate NaN, so two passes also check every value.
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(
                f"the {self.method} observer saw NaN or Inf among {values.size} values; check the "
                "calibration data and that the float model is finite on them"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._accumulate(values, low, high)
        self.count += values.size

    def range(self) -> tuple[float, float]:
        """Return the range (lo, hi) to quantize, in real units; lo <= hi.

        Raises
        ------
        DataError
            When no value was seen.
        """
        if self.count == 0:
            raise DataError(
                f"the {self.method} observer saw no data; run the calibration data through the "
                "model before asking for ranges"
            )
        return self._choose()

    def state(self) -> State:
        """Return all that `observer_from_state` needs, as arrays that fit into an .npz."""
        return {
            "method": np.array(self.method),
            "count": np.array(self.count, np.int64),
            "extremes": np.array([self.low, self.high]),
        }

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Observer:
        """Return the observer whose `state` this was."""

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.count = int(state["count"])
        self.low, self.high = (float(value) for value in state["extremes"])

    @abstractmethod
    def _accumulate(self, values: NDArray[np.float32], low: float, high: float) -> None:
        """Take in a nonempty batch with least and greatest value `low` and `high`."""

    @abstractmethod
    def _choose(self) -> tuple[float, float]:
        """Return the range, given at least one value."""


class MinMaxObserver(Observer):
    """Quantize everything between the least and the greatest value."""

    method = "minmax"

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> MinMaxObserver:
        """Return the observer whose `state` this was."""
        observer = cls()
        observer._restore(state)
        return observer

    def _accumulate(self, values: NDArray[np.float32], low: float, high: float) -> None:
        pass

    def _choose(self) -> tuple[float, float]:
        return self.low, self.high


class MovingAverageObserver(Observer):
    """Average the least and the greatest value of each batch, exponentially weighted.

    ``lo <- momentum * lo + (1 - momentum) * min(batch)``, likewise hi; the first batch starts it.
    Unlike the other observers this depends on the batches and their order.
    """

    method = "moving_average"

    def __init__(self, *, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise QuantizationError(f"momentum = {momentum}; expected 0 <= momentum < 1")
        self.momentum = momentum
        self._average = (0.0, 0.0)

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> MovingAverageObserver:
        """Return the observer whose `state` this was."""
        observer = cls(momentum=float(state["momentum"]))
        observer._restore(state)
        low, high = (float(value) for value in state["average"])
        observer._average = (low, high)
        return observer

    def state(self) -> State:
        """Return all that `observer_from_state` needs, as arrays that fit into an .npz."""
        own = {"momentum": np.array(self.momentum), "average": np.array(self._average)}
        return super().state() | own

    def _accumulate(self, values: NDArray[np.float32], low: float, high: float) -> None:
        if self.count == 0:
            self._average = (low, high)
            return
        keep = self.momentum
        old_low, old_high = self._average
        self._average = (keep * old_low + (1 - keep) * low, keep * old_high + (1 - keep) * high)

    def _choose(self) -> tuple[float, float]:
        return self._average


class HistogramObserver(Observer):
    """Count values in bins of equal width; the base of percentile, entropy and mse.

    Parameters
    ----------
    bins : int
        Bins on either side of zero. The widest side uses more than half of them.

    Attributes
    ----------
    counts : array of int64, shape (2 * bins,)
        Number of nonzero values x with ``floor(x / width) == k`` at index ``k + bins``.
    zeros : int
        Number of values that are exactly 0.
    exponent : int
        The bin width is 2^exponent: the least for which all data lie within the bins, so it
        depends on the extremes only and merging never has to guess.
    """

    def __init__(self, *, bins: int = 2048) -> None:
        super().__init__()
        if bins < 256:
            raise QuantizationError(
                f"bins = {bins}; expected at least 256, as many as 8-bit levels"
            )
        self.bins = bins
        self.counts: NDArray[np.int64] = np.zeros(2 * bins, np.int64)
        self.zeros = 0
        self.exponent = _MIN_EXPONENT

    @property
    def width(self) -> float:
        """Width of a bin in real units."""
        return math.ldexp(1.0, self.exponent)

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> HistogramObserver:
        """Return the observer whose `state` this was."""
        counts = state["counts"]
        options = {name: state[name].item() for name in cls._options()}
        observer = cls(bins=len(counts) // 2, **options)
        observer._restore(state)
        observer.counts = counts.astype(np.int64)
        observer.zeros = int(state["zeros"])
        observer.exponent = int(state["exponent"])
        return observer

    def state(self) -> State:
        """Return all that `observer_from_state` needs, as arrays that fit into an .npz."""
        own = {
            "counts": self.counts.copy(),
            "zeros": np.array(self.zeros, np.int64),
            "exponent": np.array(self.exponent, np.int64),
        }
        options = {name: np.array(getattr(self, name)) for name in self._options()}
        return super().state() | own | options

    @classmethod
    def _options(cls) -> tuple[str, ...]:
        """Return the names of the constructor's options besides `bins`."""
        return ()

    def _accumulate(self, values: NDArray[np.float32], low: float, high: float) -> None:
        self._widen(low, high)
        factor = np.float32(math.ldexp(1.0, -self.exponent))
        size = min(values.size, _CHUNK)
        scaled, truncated = np.empty(size, np.float32), np.empty(size, np.int32)
        index, nonzero = np.empty(size, np.intp), np.empty(size, np.bool_)
        for start in range(0, values.size, _CHUNK):
            chunk = values[start : start + _CHUNK]
            n = chunk.size
            # The factor is a power of two and |scaled| <= bins: exact, unless a negative value
            # below 2^-100 bins underflows and so moves from bin -1 to bin 0.
            np.multiply(chunk, factor, out=scaled[:n])
            if low < 0.0:
                np.floor(scaled[:n], out=scaled[:n])
            # By way of int32, since only that conversion from float is vectorized.
            np.copyto(truncated[:n], scaled[:n], casting="unsafe")
            if low < 0.0:
                np.add(truncated[:n], self.bins, out=index[:n])
                self.counts += np.bincount(index[:n], minlength=2 * self.bins)
            else:
                np.copyto(index[:n], truncated[:n])
                self.counts[self.bins :] += np.bincount(index[:n], minlength=self.bins)
            np.not_equal(chunk, 0.0, out=nonzero[:n])
            zeros = n - int(np.count_nonzero(nonzero[:n]))
            self.zeros += zeros
            self.counts[self.bins] -= zeros

    def _widen(self, low: float, high: float) -> None:
        """Double the bin width until `low` and `high` fit, merging neighbouring bins."""
        exponent = self.exponent
        largest = max(high, -low)
        if largest > 0.0:
            # Always too narrow: 2^guess * bins <= largest.
            guess = math.frexp(largest)[1] - self.bins.bit_length() - 1
            exponent = max(exponent, guess)
        while not self._fits(low, high, exponent):
            exponent += 1
        shift, self.exponent = exponent - self.exponent, exponent
        if shift and self.counts.any():
            # floor(floor(x / w) / 2^shift) = floor(x / (2^shift w)), also for negative bins.
            old = np.flatnonzero(self.counts)
            merged = np.zeros_like(self.counts)
            np.add.at(merged, ((old - self.bins) >> shift) + self.bins, self.counts[old])
            self.counts = merged

    def _fits(self, low: float, high: float, exponent: int) -> bool:
        first = math.floor(math.ldexp(low, -exponent))
        last = math.floor(math.ldexp(high, -exponent))
        return first >= -self.bins and last < self.bins

    def _magnitudes(self) -> NDArray[np.int64]:
        """Return the histogram of |x| for x != 0 up to the last bin that is not empty."""
        folded = self.counts[self.bins :] + self.counts[: self.bins][::-1]
        return folded[: int(np.flatnonzero(folded)[-1]) + 1] if folded.any() else folded[:0]

    def _clip(self, threshold: float) -> tuple[float, float]:
        """Return the data's range with both ends clipped to [-threshold, threshold]."""
        low, high = (min(max(end, -threshold), threshold) for end in (self.low, self.high))
        return low, high


class PercentileObserver(HistogramObserver):
    """Clip the nonzero values outside a percentile.

    Data of one sign keep their end nearest to 0; data of both signs are clipped in either tail,
    each by ``100 - percentile`` per cent. Within a bin the values are taken as evenly spread; the
    result is exact to one bin; 100 gives the extremes exactly.

    Parameters
    ----------
    percentile : float
        In (50, 100].
    bins : int
        See `HistogramObserver`.
    """

    method = "percentile"

    def __init__(self, *, percentile: float = 99.99, bins: int = 2048) -> None:
        super().__init__(bins=bins)
        if not 50.0 < percentile <= 100.0:
            raise QuantizationError(f"percentile = {percentile}; expected 50 < percentile <= 100")
        self.percentile = percentile

    @classmethod
    def _options(cls) -> tuple[str, ...]:
        return ("percentile",)

    def _choose(self) -> tuple[float, float]:
        low, high = self.low, self.high
        if self.percentile < 100.0:
            if high > 0.0:
                high = min(high, max(low, self._upper_tail(self.counts)))
            if low < 0.0:
                low = max(low, min(high, -self._upper_tail(self.counts[::-1])))
        return low, high

    def _upper_tail(self, counts: NDArray[np.int64]) -> float:
        """Return the value that `percentile` per cent of the counted values do not exceed."""
        cumulative = np.cumsum(counts)
        target = self.percentile * float(cumulative[-1]) / 100.0
        index = int(np.searchsorted(cumulative, target))
        below = float(cumulative[index - 1]) if index else 0.0
        inside = (target - below) / float(counts[index])
        return (index - self.bins + inside) * self.width


class _ThresholdObserver(HistogramObserver):
    """Base of the observers that search one clipping threshold of |x| for a bit width.

    The quantizer is the one that "auto" of `affine_parameters` makes: unsigned where no value is
    negative, else symmetric.

    Parameters
    ----------
    bits : int
        Bit width that the range is chosen for, 2..8.
    bins : int
        See `HistogramObserver`.
    """

    def __init__(self, *, bits: int = 8, bins: int = 2048) -> None:
        super().__init__(bins=bins)
        if not 2 <= bits <= 8:
            raise QuantizationError(f"bits = {bits}; expected 2 <= bits <= 8")
        self.bits = bits

    @classmethod
    def _options(cls) -> tuple[str, ...]:
        return ("bits",)

    @property
    def levels(self) -> int:
        """Number of steps between 0 and the threshold."""
        return (1 << self.bits) - 1 if self.low >= 0.0 else (1 << (self.bits - 1)) - 1


class EntropyObserver(_ThresholdObserver):
    """Clip where the quantized distribution of |x| diverges least from the original.

    The reference P is the histogram up to the threshold with the clipped mass added to its last
    bin; Q spreads the unclipped mass of each quantization step evenly over its nonempty bins. The
    threshold minimises KL(P || Q), over every bin edge that leaves at least one bin per step. Where
    clipped mass meets an empty last step, that step counts as one value: the divergence would be
    infinite, and a far outlier could never be clipped.

    References
    ----------
    S. Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """

    method = "entropy"

    def _choose(self) -> tuple[float, float]:
        counts = self._magnitudes()
        if len(counts) <= self.levels:
            return self.low, self.high
        best = int(np.argmin(_divergences(counts, self.levels))) + self.levels
        return self._clip(best * self.width) if best < len(counts) else (self.low, self.high)


class MSEObserver(_ThresholdObserver):
    """Clip where the expected squared quantization error is least.

    The error is integrated exactly over each bin, its values taken as evenly spread. A geometric
    grid of 100 thresholds between 1 % and 100 % of the largest |x| is refined once around its best;
    the largest |x| itself is a candidate, so the error never exceeds that of minmax.
    """

    method = "mse"

    def expected_error(self, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean squared error of quantizing with each of the clipping `thresholds`.

        Parameters
        ----------
        thresholds : array of float64, shape (T,), positive
            The scale is ``threshold / levels``; values beyond it are clipped.

        Returns
        -------
        array of float64, shape (T,), in squared real units

        Notes
        -----
        In units u = x / scale the squared error integrated from 0 is
        ``G(u) = n / 12 + (u - n)^3 / 3`` with ``n = clip(floor(u + 1/2), 0, levels)``: each full
        step adds 1/12, and beyond the last level the cubic term is the clipping error.
        """
        counts = self._magnitudes()
        scale = (np.asarray(thresholds, np.float64) / self.levels)[:, None]
        edges = np.arange(len(counts) + 1) * self.width / scale
        nearest = np.minimum(np.floor(edges + 0.5), self.levels)
        integral = nearest / 12.0 + (edges - nearest) ** 3 / 3.0
        # The bin is width / scale units wide; the error is scale^2 times that in real units.
        mean_in_bin = np.diff(integral, axis=1) * scale**3 / self.width
        total: NDArray[np.float64] = mean_in_bin @ counts / self.count
        return total

    def _choose(self) -> tuple[float, float]:
        largest = max(self.high, -self.low)
        if largest <= self.width:
            return self.low, self.high
        thresholds = largest * np.geomspace(0.01, 1.0, 100)
        best = int(np.argmin(self.expected_error(thresholds)))
        around = np.linspace(thresholds[max(best - 1, 0)], thresholds[min(best + 1, 99)], 41)
        thresholds = np.append(around, thresholds[best])
        return self._clip(float(thresholds[np.argmin(self.expected_error(thresholds))]))


def _divergences(counts: NDArray[np.int64], levels: int) -> NDArray[np.float64]:
    """Return KL(P || Q) for thresholds of `levels`, levels + 1, ..., len(counts) bins.

    Quantization step j of threshold t holds the bins [floor(j t / levels), floor((j + 1) t /
    levels)). With h the counts, S and Z a step's mass and number of nonempty bins, o the clipped
    mass, N = sum(h) and M = sum_j S:
    ``N KL = sum h' log h' - sum_j S log(S / Z) - o log(S / Z of the last j) + N log(M / N)``, where
    h' = h but for the last bin, which holds h + o. Prefix sums of h, [h > 0] and h log h give every
    term. An empty last step under clipped mass has S = 1.
    """
    h = counts.astype(np.float64)
    mass = np.concatenate(([0.0], np.cumsum(h)))
    filled = np.concatenate(([0], np.cumsum(counts > 0)))
    self_term = np.concatenate(([0.0], np.cumsum(_x_log_x(h))))

    t = np.arange(levels, len(h) + 1)
    edges = t[:, None] * np.arange(levels + 1) // levels
    step_mass = np.diff(mass[edges], axis=1)
    step_filled = np.diff(filled[edges], axis=1)
    total, clipped = mass[-1], mass[-1] - mass[t]
    last = h[t - 1]
    # The last bin is nonempty in P as soon as anything is clipped.
    step_filled[:, -1] += (last == 0.0) & (clipped > 0.0)
    step_mass[:, -1] += (step_mass[:, -1] == 0.0) & (clipped > 0.0)

    cross = np.sum(_x_log_x(step_mass) - step_mass * _log(step_filled), axis=1)
    cross += clipped * (_log(step_mass[:, -1]) - _log(step_filled[:, -1]))
    reference = self_term[t] - _x_log_x(last) + _x_log_x(last + clipped)
    divergence: NDArray[np.float64] = (reference - cross) / total
    divergence += _log(step_mass.sum(axis=1) / total)
    return divergence


def _log(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return log(x), and 0 where x is 0."""
    result: NDArray[np.float64] = np.log(x, where=x > 0, out=np.zeros(x.shape))
    return result


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = x * _log(x)
    return result


_OBSERVERS: Mapping[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
    "mse": MSEObserver,
}


def make_observer(method: str, **options: Any) -> Observer:
    """Return a new observer.

    Parameters
    ----------
    method : {"minmax", "moving_average", "percentile", "entropy", "mse"}
    **options
        The keyword arguments of the observer's class, such as ``percentile=99.9``.

    Raises
    ------
    QuantizationError
        When the method or an option is unknown, or an option is out of range.

    Examples
    --------
    >>> observer = make_observer("percentile", percentile=99.9)
    >>> observer.update(np.linspace(0, 1, 1001, dtype=np.float32))
    >>> tuple(round(end, 3) for end in observer.range())
    (0.0, 0.999)
    """
    observer = _OBSERVERS.get(method)
    if observer is None:
        raise QuantizationError(
            f"calibration method {method!r} is unknown; expected one of {', '.join(_OBSERVERS)}"
        )
    known = list(inspect.signature(observer.__init__).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):
        raise QuantizationError(
            f"calibration method {method!r} has no option {', '.join(unknown)}; its options are: "
            f"{', '.join(known) or 'none'}"
        )
    return observer(**options)


def observer_from_state(state: Mapping[str, NDArray[Any]]) -> Observer:
    """Return the observer whose `Observer.state` this was.

    Raises
    ------
    DataError
        When the arrays are not the state of an observer.
    """
    try:
        return _OBSERVERS[str(state["method"])].from_state(state)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"saved calibration state with {sorted(state)} is damaged or of another version: "
            f"{error!r}; calibrate again"
        ) from error


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
    if scheme not in ("symmetric", "unsigned", "asymmetric"):
        raise QuantizationError(
            f"scheme {scheme!r} is unknown; expected symmetric, unsigned, asymmetric or auto"
        )
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
    method: Literal["minmax", "mse"] = "minmax",
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
    if method not in ("minmax", "mse"):
        raise QuantizationError(f"weight method {method!r} is unknown; expected minmax or mse")
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
