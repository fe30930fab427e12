"""How long a run of the tuner may take, and how much of that is left."""

from __future__ import annotations

import time

# Of a budget of time, what confirming may take.
CONFIRMING_SHARE = 0.3


class RunBudget:
    """Trials or seconds, and how fast they are spent.

    Parameters
    ----------
    trials : int, optional
    seconds : float, optional
        From now on.
    """

    def __init__(self, trials: int | None = None, seconds: float | None = None) -> None:
        self.trials = trials
        self._seconds = seconds
        self._start = time.monotonic()
        self._measured = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return self._seconds is not None and self.elapsed >= self._seconds

    def measured(self) -> None:
        """Count a measurement."""
        self._measured += 1

    def trials_left(self, done: int) -> int:
        """Return how many candidates may be measured after so many."""
        return self.trials - done if self.trials is not None else 1 << 30

    def may_search(self, done: int, confirming: int) -> bool:
        """Whether another round fits, with so many measurements to come after it."""
        if self.trials_left(done) <= 0:
            return False
        if self._seconds is None:
            return True
        reserve = min(CONFIRMING_SHARE * self._seconds, confirming * self._pace())
        return self.elapsed + reserve < self._seconds

    def remaining(self, done: int, confirming: int) -> float | None:
        """Return the expected seconds to the end."""
        if self._seconds is not None:
            return max(0.0, self._seconds - self.elapsed)
        if self.trials is None or not self._measured:
            return None
        return (max(0, self.trials - done) + confirming) * self._pace()

    def _pace(self) -> float:
        return self.elapsed / max(1, self._measured)
