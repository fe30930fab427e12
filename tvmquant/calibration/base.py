"""Observers of the extremes: the base class, minmax and moving average.

Every observer sees a tensor's values batch by batch and ends with a range (lo, hi) in real units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.errors import DataError, QuantizationError


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

    def range_for(self, bits: int) -> tuple[float, float]:
        """Return the range to quantize with a bit width: `range`, where it does not depend on it.

        Parameters
        ----------
        bits : int
            2..8.
        """
        return self.range()

    @abstractmethod
    def _accumulate(self, values: NDArray[np.float32], low: float, high: float) -> None:
        """Take in a nonempty batch with least and greatest value `low` and `high`."""

    @abstractmethod
    def _choose(self) -> tuple[float, float]:
        """Return the range, given at least one value."""


class MinMaxObserver(Observer):
    """Quantize everything between the least and the greatest value."""

    method = "minmax"

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

    def _accumulate(self, values: NDArray[np.float32], low: float, high: float) -> None:
        if self.count == 0:
            self._average = (low, high)
            return
        keep = self.momentum
        old_low, old_high = self._average
        self._average = (keep * old_low + (1 - keep) * low, keep * old_high + (1 - keep) * high)

    def _choose(self) -> tuple[float, float]:
        return self._average
