"""Observers that search the clipping threshold of |x| for a bit width: entropy and mse."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.calibration.histogram import HistogramObserver
from tvmquant.errors import QuantizationError
from tvmquant.quantizer import check_scheme

FloatArray = NDArray[np.float64]

# 6 dB: what clipping for the sake of the distribution may cost
MOST_ERROR = 4.0
# Thresholds whose error is computed for that; it is interpolated between them
GUARDED = 256


class _ThresholdObserver(HistogramObserver):
    """Base of the observers that search one clipping threshold of |x| for a bit width.

    Parameters
    ----------
    bits : int
        Bit width that the range is chosen for, 2..8.
    scheme : str
        Of the quantizer, see `tvmquant.quantizer.affine_parameters`: it decides how far apart the
        levels are between two thresholds.
    bins : int
        See `HistogramObserver`.
    """

    def __init__(self, *, bits: int = 8, scheme: str = "auto", bins: int = 2048) -> None:
        super().__init__(bins=bins)
        if not 2 <= bits <= 8:
            raise QuantizationError(f"bits = {bits}; expected 2 <= bits <= 8")
        check_scheme(scheme)
        self.bits = bits
        self.scheme = scheme

    def range_for(self, bits: int) -> tuple[float, float]:
        """Return the range that suits a bit width, 1..8.

        The two levels of 1 bit are 0 and the upper end where nothing is negative, else the ends:
        the mean of |x| on either side of 0 has the least squared error (XNOR-Net, Rastegari et al.,
        2016, eq. 6).
        """
        if bits == 1 and (self.low < 0.0 or self.scheme == "symmetric"):
            centres = (np.arange(len(self._magnitudes())) + 0.5) * self.width
            mean = float(self._magnitudes() @ centres) / max(self.count, 1)
            return -mean, mean
        other = copy.copy(self)
        other.bits = bits
        return other.range()

    @property
    def levels(self) -> int:
        """Number of steps between 0 and the threshold, where it does not depend on that."""
        signed = self.scheme == "symmetric" or self.low < 0.0
        return (1 << (self.bits - signed)) - 1

    def expected_error(self, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean squared error of quantizing with each of the clipping `thresholds`.

        Parameters
        ----------
        thresholds : array of float64, shape (T,), positive
            Values beyond them, on either side, are clipped.

        Returns
        -------
        array of float64, shape (T,), in squared real units

        Notes
        -----
        In units u = |x| / scale the squared error integrated from 0 is
        ``G(u) = n / 12 + (u - n)^3 / 3`` with ``n = clip(floor(u + 1/2), 0, levels)``: each full
        step adds 1/12, and beyond the last level the cubic term is the clipping error.
        """
        scale, below, above = self._steps(np.asarray(thresholds, np.float64))
        length = len(self._magnitudes())
        total = np.zeros(len(scale))
        sides = ((self.counts[self.bins :], above), (self.counts[: self.bins][::-1], below))
        for counts, levels in sides:
            if not counts[:length].any():
                continue
            edges = np.arange(length + 1) * self.width / scale[:, None]
            nearest = np.minimum(np.floor(edges + 0.5), levels[:, None])
            beyond = edges - nearest
            integral = nearest / 12.0 + beyond * beyond * beyond / 3.0
            # The bin is width / scale units wide; the error is scale^2 times that in real units.
            mean_in_bin = np.diff(integral, axis=1) * scale[:, None] ** 3 / self.width
            total += mean_in_bin @ counts[:length]
        return total / self.count

    def _steps(self, thresholds: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the scale, and the number of steps below and above 0, for each threshold."""
        if self.scheme != "asymmetric" or self.low >= 0.0:
            steps = np.full(len(thresholds), float(self.levels))
            return thresholds / self.levels, steps, steps
        low = np.minimum(thresholds, max(-self.low, 0.0))
        high = np.minimum(thresholds, max(self.high, 0.0))
        scale = (low + high) / ((1 << self.bits) - 1)
        return scale, np.rint(low / scale), np.rint(high / scale)


class EntropyObserver(_ThresholdObserver):
    """Clip where the quantized distribution of |x| diverges least from the original.

    The reference P is the histogram up to the threshold with the clipped mass added to its last
    bin; Q spreads the unclipped mass of each quantization step evenly over its nonempty bins. The
    threshold minimises KL(P || Q), over every bin edge that leaves at least one bin per step. Where
    clipped mass meets an empty last step, that step counts as one value: the divergence would be
    infinite, and a far outlier could never be clipped. Of data of both signs the larger end has
    as many steps as the quantizer of both ends leaves it: all but a few where the other is near 0.

    Of few values the divergence tells little: with B bins it is (B - 1) / 2N in the mean even where
    Q is the distribution they come from, so that a thin histogram would lose most of its range.
    Of few levels it prefers to clip nearly everything. Thresholds whose squared error is
    `MOST_ERROR` times the least, or half way to the greatest, do not count.

    References
    ----------
    S. Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """

    method = "entropy"

    def _choose(self) -> tuple[float, float]:
        counts = self._magnitudes()
        bins = np.arange(1, len(counts) + 1)
        thresholds = bins.astype(np.float64) * self.width
        _, below, above = self._steps(thresholds)
        levels = np.maximum(np.maximum(below, above), 1.0).astype(np.int64)
        candidates = levels <= bins
        if not candidates.any():
            return self.low, self.high
        divergences = np.full(len(counts), np.inf)
        for count in np.unique(levels[candidates]):
            of_count = candidates & (levels == count)
            divergences[of_count] = _divergences(counts, bins[of_count], int(count))
        some = thresholds[:: -max(1, len(thresholds) // GUARDED)][::-1]
        known = self.expected_error(some)
        errors = np.interp(thresholds, some, known)
        least = known.min()
        limit = min(MOST_ERROR * least, (least + known.max()) / 2.0)
        divergences[errors > limit] = np.inf
        if not np.isfinite(divergences).any():
            return self.low, self.high
        best = int(np.argmin(divergences)) + 1
        return self._clip(best * self.width) if best < len(counts) else (self.low, self.high)


class MSEObserver(_ThresholdObserver):
    """Clip where the expected squared quantization error is least.

    The error is integrated exactly over each bin, its values taken as evenly spread. A geometric
    grid of 100 thresholds between 1 % and 100 % of the largest |x| is refined once around its best;
    the largest |x| itself is a candidate, so the error never exceeds that of minmax. Of data of
    both signs either end is clipped at the threshold, and the levels of an asymmetric quantizer
    divide what lies between the ends.

    Parameters
    ----------
    least_gain : float
        In [0, 1): nothing is clipped unless that takes away this part of the error of clipping
        nothing. Errors of rounding average out in what a layer or a pool sums up, those of clipping
        all have one sign, and a maximum keeps just these.
    bits, scheme, bins
        See `_ThresholdObserver`.
    """

    method = "mse"

    def __init__(
        self, *, bits: int = 8, scheme: str = "auto", bins: int = 2048, least_gain: float = 0.0
    ) -> None:
        super().__init__(bits=bits, scheme=scheme, bins=bins)
        if not 0.0 <= least_gain < 1.0:
            raise QuantizationError(f"least_gain = {least_gain}; expected 0 <= least_gain < 1")
        self.least_gain = least_gain

    def _choose(self) -> tuple[float, float]:
        largest = max(self.high, -self.low)
        if largest <= self.width:
            return self.low, self.high
        thresholds = largest * np.geomspace(0.01, 1.0, 100)
        best = int(np.argmin(self.expected_error(thresholds)))
        around = np.linspace(thresholds[max(best - 1, 0)], thresholds[min(best + 1, 99)], 41)
        thresholds = np.concatenate((around, [thresholds[best], largest]))
        errors = self.expected_error(thresholds)
        best = int(np.argmin(errors))
        clips = errors[best] <= (1.0 - self.least_gain) * errors[-1]
        return self._clip(float(thresholds[best])) if clips else (self.low, self.high)


def _divergences(
    counts: NDArray[np.int64], thresholds: NDArray[np.int64], levels: int
) -> NDArray[np.float64]:
    """Return KL(P || Q) for thresholds of so many bins, `levels` at least.

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

    t = thresholds
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
