"""One kernel of a network while it is tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tvmquant.tuning.cost_model import CostModel, features
from tvmquant.tuning.database import Database
from tvmquant.tuning.record import Timing
from tvmquant.tuning.search import Search
from tvmquant.tuning.workload import Workload, canonical_json

# Improvement expected of the first batch, and the least that is ever expected of a batch.
FIRST_RATE = 0.25
LEAST_RATE = 0.003
# Measurements of the fastest tiling and of the default, at most where they do not agree, and how
# many tilings contend.
CONFIRMATIONS = 3
MOST_CONFIRMATIONS = 7
CONTENDERS = 3


class Task:
    """One workload while it is tuned: its tilings by number, 0 the default, and what they took.

    Parameters
    ----------
    database : Database
        What it says of the workload is known from the beginning.
    workload : Workload
    weight : int
        How often the network computes it.
    rng : numpy Generator
        Of the search.

    Attributes
    ----------
    tilings : list
    seconds : dict of int to float
        Of the tilings that were measured; infinite where that failed.
    rate : float
        Improvement expected of the next batch, as a share of the time.
    """

    def __init__(
        self, database: Database, workload: Workload, weight: int, rng: np.random.Generator
    ) -> None:
        self.workload = workload
        self.weight = weight
        offered = workload.tilings(database.machine)
        self.tilings = list(offered.values())
        self.seconds: dict[int, float] = {}
        self.rate = FIRST_RATE
        self._indices = {text: index for index, text in enumerate(offered)}
        self._database = database
        self._search = Search(self.tilings, rng)
        self._features: dict[int, dict[str, float]] = {}
        self._timings: dict[int, Timing] = {}
        self.refresh()

    def refresh(self, changed: int | None = None) -> None:
        """Read what the database says of this workload."""
        found = {self._indices.get(canonical_json(t.tiling)): t for t in self._timings_now()}
        self._timings = {i: t for i, t in found.items() if i is not None}
        failed = {} if changed is None else {changed: math.inf}
        if changed is None:
            for record in self._database.records(self.workload.key):
                index = self._indices.get(canonical_json(record.tiling))
                if index is not None:
                    failed[index] = math.inf
        self.seconds.update(failed)
        self.seconds.update({i: t.seconds for i, t in self._timings.items()})

    def _timings_now(self) -> list[Timing]:
        return self._database.timings(self.workload.key)

    @property
    def default(self) -> float | None:
        """Seconds of the default; None where it was not measured, or failed."""
        seconds = self.seconds.get(0, math.inf)
        return seconds if math.isfinite(seconds) else None

    @property
    def best(self) -> float:
        """Least seconds; infinite where nothing was measured."""
        return min(self.seconds.values(), default=math.inf)

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing more to measure."""
        return self.default is None or len(self.seconds) >= len(self.tilings)

    def trials(self, index: int) -> int:
        """Return how often a tiling was measured with success."""
        return self._timings[index].trials if index in self._timings else 0

    def unconfirmed(self) -> list[int]:
        """Return those of the fastest tilings and the default that were measured too rarely."""
        if self.default is None:
            return []
        ran = sorted(self._timings, key=lambda i: self.seconds[i])
        if self._confirmed(ran[0]) and self._confirmed(0):
            return []
        contenders = dict.fromkeys([0, *ran[:CONTENDERS]])
        return [i for i in contenders if not self._confirmed(i)]

    def _confirmed(self, index: int) -> bool:
        timing = self._timings[index]
        enough = CONFIRMATIONS if timing.settled else MOST_CONFIRMATIONS
        return timing.trials >= enough

    @property
    def settled(self) -> bool:
        """Whether the measurements of the default and of the fastest tiling agree."""
        ran = self._timings.values()
        return self.default is None or (
            self._timings[0].settled and min(ran, key=lambda t: t.seconds).settled
        )

    @property
    def gain(self) -> float:
        """Seconds by which the network is faster than with this default."""
        return self.weight * (self.seconds[0] - self.best)

    def expected_gain(self) -> float:
        """Return the seconds by which the next batch may make the network faster."""
        return self.weight * self.best * self.rate

    def update_rate(self, before: float) -> None:
        """Remember how much the last batch improved on ``before`` seconds."""
        self.rate = max(LEAST_RATE, 0.5 * self.rate + 0.5 * (1 - self.best / before))

    def propose(self, count: int, model: CostModel, threads: int) -> list[int]:
        """Return the indices of tilings to measure."""

        def predict(indices: Sequence[int]) -> NDArray[np.float32]:
            return model.predict([self.features(i, threads) for i in indices])

        return self._search.propose(self.seconds, count, predict)

    def features(self, index: int, threads: int) -> dict[str, float]:
        """Return the features of a tiling."""
        if index not in self._features:
            self._features[index] = features(self.workload, self.tilings[index], threads)
        return self._features[index]

    def ratios(self) -> list[tuple[int, float]]:
        """Return (index, target of the cost model) of what was measured."""
        if self.default is None:
            return []
        return [
            (index, math.log(seconds / self.default))
            for index, seconds in self.seconds.items()
            if math.isfinite(seconds)
        ]
