"""Search the tilings of a network's kernels within a budget, measuring on the target.

1. The analytic default of every workload is measured first: tuning never ends worse than none.
2. Rounds: the workloads with the largest expected gain (share of the network's time x recent
   improvement) get a batch of candidates each, proposed by `Search` and ranked by `CostModel`; they
   are built in parallel and measured one after the other.
3. The fastest few and the default are measured again, in turns: the least of many noisy times is
   fast by luck too.
"""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvmquant.errors import TuningError
from tvmquant.tuning.cost_model import CostModel, features
from tvmquant.tuning.database import Database
from tvmquant.tuning.measure import (
    Artifact,
    Candidate,
    HostRunner,
    KernelBuilder,
    Outcome,
    Runner,
)
from tvmquant.tuning.record import Record, Timing
from tvmquant.tuning.search import Search
from tvmquant.tuning.workload import Workload, canonical_json, encode

logger = logging.getLogger(__name__)

BATCH = 8
WORKLOADS_PER_ROUND = 2
# Improvement expected of the first batch, and the least that is ever expected of a batch.
FIRST_RATE = 0.25
LEAST_RATE = 0.003
# Measurements of the fastest tiling and of the default, at most where they do not agree, and how
# many tilings contend.
CONFIRMATIONS = 3
MOST_CONFIRMATIONS = 7
CONTENDERS = 3
# Of a budget of time, what confirming may take.
CONFIRMING_SHARE = 0.3
TRIALS_PER_WORKLOAD = 64


@dataclass(frozen=True)
class Progress:
    """The state of a run.

    Parameters
    ----------
    trials : int
        Candidates measured in this run.
    total : int or None
        Of a budget of trials.
    elapsed : float
        Seconds.
    remaining : float or None
        Expected seconds to the end; None before it can be told.
    default_ms, best_ms : float
        Sum over the network's kernels measured so far, with their defaults and at best.
    stage : str
        ``default``, ``search`` or ``confirm``.
    """

    trials: int
    total: int | None
    elapsed: float
    remaining: float | None
    default_ms: float
    best_ms: float
    stage: str


@dataclass(frozen=True)
class Tuning:
    """What a run did.

    Parameters
    ----------
    trials, failed : int
        Candidates measured, and how many of them failed.
    confirmations : int
        Measurements of tilings that were known.
    seconds : float
    default_ms, best_ms : float
        Sum over the network's kernels, with their defaults and at best.
    unsettled : int
        Kernels whose measurements do not agree: other processes kept the target busy.
    interrupted : bool
        Whether Ctrl-C ended it.
    """

    trials: int
    failed: int
    confirmations: int
    seconds: float
    default_ms: float
    best_ms: float
    unsettled: int
    interrupted: bool


class Tuner:
    """Tunes the kernels of one or more networks.

    Parameters
    ----------
    database : Database
        Where measurements go; what it holds already is not measured again.
    workloads : mapping of Workload to int
        How often a network runs each.
    builder : KernelBuilder, optional
    runner : Runner, optional
        Default: this machine. Builder and runner are closed when `run` ends.
    seed : int
    progress : callable, optional
        Receives a `Progress` after every measurement.

    Examples
    --------
    >>> database = Database("table", Machine.of(threads=2))              # doctest: +SKIP
    >>> tuner = Tuner(database, count(workloads.values()))           # doctest: +SKIP
    >>> tuner.run(seconds=600).best_ms                               # doctest: +SKIP
    """

    def __init__(
        self,
        database: Database,
        workloads: Mapping[Workload, int],
        *,
        builder: KernelBuilder | None = None,
        runner: Runner | None = None,
        seed: int = 0,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._database = database
        self._builder = builder or KernelBuilder(database.machine)
        self._runner = runner or HostRunner(database.machine.threads)
        self._rng = np.random.default_rng(seed)
        self._model = CostModel(seed)
        self._progress = progress or (lambda _progress: None)
        self._tasks = [_Task(database, w, n, self._rng) for w, n in workloads.items()]
        self._clock = _Clock()
        self._trials = self._failed = self._confirmations = 0
        self._first_error = ""

    def run(self, *, trials: int | None = None, seconds: float | None = None) -> Tuning:
        """Tune within a budget.

        Parameters
        ----------
        trials : int, optional
            Candidates to measure, > 0. The defaults count, and are measured in any case;
            confirmations come on top.
        seconds : float, optional
            Time to end after, > 0; the defaults are measured in any case. Without either:
            64 trials for each workload.

        Returns
        -------
        Tuning
            Also after Ctrl-C (KeyboardInterrupt), saying so.

        Raises
        ------
        TuningError
            If a budget is not positive, no kernel at all could be measured, the devices are lost,
            or the database cannot be written. What was measured is kept.
        """
        if (trials is not None and trials < 1) or (seconds is not None and seconds <= 0):
            raise TuningError(f"trials = {trials}, seconds = {seconds}; expected more than 0")
        if trials is None and seconds is None:
            trials = TRIALS_PER_WORKLOAD * len(self._tasks)
        self._clock = _Clock(trials, seconds)
        interrupted = False
        try:
            self._measure_defaults()
            while self._clock.may_search(self._trials, self._confirming()) and self._round():
                pass
            self._confirm()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self._builder.close()
            self._runner.close()
        default, best = self._network()
        unsettled = sum(not task.settled for task in self._tasks)
        return Tuning(
            self._trials, self._failed, self._confirmations, self._clock.elapsed, default, best,
            unsettled, interrupted,
        )  # fmt: skip

    def _measure_defaults(self) -> None:
        missing = [task for task in self._tasks if task.default is None]
        size = BATCH * WORKLOADS_PER_ROUND
        for start in range(0, len(missing), size):
            self._measure([(task, 0) for task in missing[start : start + size]], "default")
        if self._tasks and all(task.default is None for task in self._tasks):
            raise TuningError(
                f"none of the {len(self._tasks)} kernels could be measured; the first failed with: "
                f"{self._first_error}"
            )

    def _round(self) -> bool:
        """Measure one batch of each of the most promising workloads; False where none is left."""
        open_tasks = [task for task in self._tasks if not task.exhausted]
        open_tasks.sort(key=_Task.expected_gain, reverse=True)
        self._learn()
        left = self._clock.trials_left(self._trials)
        candidates: list[tuple[_Task, int]] = []
        chosen = open_tasks[:WORKLOADS_PER_ROUND]
        for task in chosen:
            count = min(BATCH, left - len(candidates))
            candidates += [
                (task, index)
                for index in task.propose(count, self._model, self._database.machine.threads)
            ]
        before = [task.best for task in chosen]
        self._measure(candidates, "search")
        for task, seconds in zip(chosen, before, strict=True):
            task.update_rate(seconds)
        return bool(candidates)

    def _learn(self) -> None:
        rows: list[Mapping[str, float]] = []
        targets: list[float] = []
        for task in self._tasks:
            for index, ratio in task.ratios():
                rows.append(task.features(index, self._database.machine.threads))
                targets.append(ratio)
        self._model.fit(rows, targets)

    def _confirm(self) -> None:
        size = BATCH * WORKLOADS_PER_ROUND
        for _ in range(CONTENDERS + MOST_CONFIRMATIONS):
            order = self._confirmation_order()
            if not order:
                return
            for start in range(0, len(order), size):
                if self._clock.over:
                    return
                self._measure(order[start : start + size], "confirm")

    def _confirmation_order(self) -> list[tuple[_Task, int]]:
        """Return what to measure again: in turns, first where most was gained."""
        order: list[tuple[tuple[int, bool, float], tuple[_Task, int]]] = []
        for task in self._tasks:
            contenders = task.unconfirmed()
            for index in contenders:
                other = index != 0 and task.seconds[index] > task.best
                for turn in range(max(1, CONFIRMATIONS - task.trials(index))):
                    order.append(((turn, other, -task.gain), (task, index)))
        return [candidate for _, candidate in sorted(order, key=lambda item: item[0])]

    def _confirming(self) -> int:
        """Return how many measurements confirming would take now."""
        return (CONFIRMATIONS - 1) * sum(len(task.unconfirmed()) for task in self._tasks)

    def _measure(self, candidates: Sequence[tuple[_Task, int]], stage: str) -> None:
        """Build and measure candidates, recording each as soon as it is known."""
        distinct = list(dict.fromkeys(candidates))
        built = self._builder.build(
            [Candidate(task.workload, task.tilings[index]) for task, index in distinct]
        )
        results = dict(zip(distinct, built, strict=True))
        runnable: list[Artifact] = []
        origins: list[tuple[_Task, int]] = []
        for candidate in candidates:
            result = results[candidate]
            if isinstance(result, Artifact):
                runnable.append(result)
                origins.append(candidate)
            else:
                self._record(*candidate, result, stage)
        for position, outcome in self._runner.measure(runnable):
            self._record(*origins[position], outcome, stage)

    def _record(self, task: _Task, index: int, outcome: Outcome, stage: str) -> None:
        workload = task.workload
        record = Record(
            key=workload.key,
            family=workload.family,
            spec=encode(workload.spec),
            tiling=encode(task.tilings[index]),
            default=index == 0,
            time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            cpu=self._runner.cpu,
            **outcome.statistics(),
        )
        self._database.append(record)
        task.refresh(index)
        if stage == "confirm":
            self._confirmations += 1
        else:
            self._trials += 1
        if record.error is not None:
            self._failed += 1
            self._first_error = self._first_error or record.error
            level = logging.WARNING if index == 0 else logging.DEBUG
            logger.log(level, "%s with %s: %s", record.spec, record.tiling, record.error)
        self._clock.measured()
        default, best = self._network()
        remaining = self._clock.remaining(self._trials, self._confirming())
        self._progress(
            Progress(
                self._trials, self._clock.trials, self._clock.elapsed, remaining, default, best,
                stage,
            )
        )  # fmt: skip

    def _network(self) -> tuple[float, float]:
        """Return the sums over the kernels, default and best, in milliseconds."""
        known = [task for task in self._tasks if task.default is not None]
        default = sum(task.weight * task.seconds[0] for task in known)
        return default * 1e3, sum(task.weight * task.best for task in known) * 1e3


def count(workloads: Iterable[Workload]) -> dict[Workload, int]:
    """Return how often each workload occurs: layers of equal workload are tuned once."""
    found: dict[Workload, int] = {}
    for workload in workloads:
        found[workload] = found.get(workload, 0) + 1
    return found


class _Clock:
    """The budget, and how fast it is spent."""

    def __init__(self, trials: int | None = None, seconds: float | None = None) -> None:
        self.trials = trials
        self._seconds = seconds
        self._start = time.monotonic()
        self._measured = 0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    @property
    def over(self) -> bool:
        return self._seconds is not None and self.elapsed >= self._seconds

    def measured(self) -> None:
        self._measured += 1

    def trials_left(self, done: int) -> int:
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


class _Task:
    """One workload while it is tuned."""

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
