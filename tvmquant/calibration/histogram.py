"""Observers of the distribution: the streaming histogram, and percentiles of it.

The bin width is a power of two and bin k covers [k w, (k + 1) w), so widening is an exact merge of
neighbours and the result does not depend on how the data were split into batches.

Exact zeros are counted apart from the histogram and take no part in the choice of a range: after a
ReLU they can be most of the data, yet real 0 is always represented exactly, is never clipped and
tells nothing about where to clip. Percentiles and divergences are those of the nonzero values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tvmquant.calibration.base import Observer
from tvmquant.errors import QuantizationError

# Bins are never narrower: the factor 1 / width must be a finite float32, and ranges below 1e-33 are
# zero for every purpose.
_MIN_EXPONENT = -120
# Elements binned at a time: 21 bytes of each, 1.4 MB, stay close to the core.
_CHUNK = 1 << 16


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
