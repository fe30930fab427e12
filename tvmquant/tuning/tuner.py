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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvmquant.errors import TuningError
from tvmquant.tuning.budget import RunBudget
from tvmquant.tuning.cost_model import CostModel
from tvmquant.tuning.database import Database
from tvmquant.tuning.measure import (
    Artifact,
    Candidate,
    HostRunner,
    KernelBuilder,
    Outcome,
    Runner,
)
from tvmquant.tuning.record import Record
from tvmquant.tuning.task import CONFIRMATIONS, CONTENDERS, MOST_CONFIRMATIONS, Task
from tvmquant.tuning.workload import Workload, encode

logger = logging.getLogger(__name__)

BATCH = 8
WORKLOADS_PER_ROUND = 2
TRIALS_PER_WORKLOAD = 64


@dataclass(frozen=True)
class TuningProgress:
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
        Receives a `TuningProgress` after every measurement.

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
        progress: Callable[[TuningProgress], None] | None = None,
    ) -> None:
        self._database = database
        self._builder = builder or KernelBuilder(database.machine)
        self._runner = runner or HostRunner(database.machine.threads)
        self._rng = np.random.default_rng(seed)
        self._model = CostModel(seed)
        self._progress = progress or (lambda _progress: None)
        self._tasks = [Task(database, w, n, self._rng) for w, n in workloads.items()]
        self._budget = RunBudget()
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
        self._budget = RunBudget(trials, seconds)
        interrupted = False
        try:
            self._measure_defaults()
            while self._budget.may_search(self._trials, self._confirming()) and self._round():
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
            self._trials, self._failed, self._confirmations, self._budget.elapsed, default, best,
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
        open_tasks.sort(key=Task.expected_gain, reverse=True)
        self._learn()
        left = self._budget.trials_left(self._trials)
        candidates: list[tuple[Task, int]] = []
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
                if self._budget.over:
                    return
                self._measure(order[start : start + size], "confirm")

    def _confirmation_order(self) -> list[tuple[Task, int]]:
        """Return what to measure again: in turns, first where most was gained."""
        order: list[tuple[tuple[int, bool, float], tuple[Task, int]]] = []
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

    def _measure(self, candidates: Sequence[tuple[Task, int]], stage: str) -> None:
        """Build and measure candidates, recording each as soon as it is known."""
        distinct = list(dict.fromkeys(candidates))
        built = self._builder.build(
            [Candidate(task.workload, task.tilings[index]) for task, index in distinct]
        )
        results = dict(zip(distinct, built, strict=True))
        runnable: list[Artifact] = []
        origins: list[tuple[Task, int]] = []
        for candidate in candidates:
            result = results[candidate]
            if isinstance(result, Artifact):
                runnable.append(result)
                origins.append(candidate)
            else:
                self._record(*candidate, result, stage)
        for position, outcome in self._runner.measure(runnable):
            self._record(*origins[position], outcome, stage)

    def _record(self, task: Task, index: int, outcome: Outcome, stage: str) -> None:
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
        self._budget.measured()
        default, best = self._network()
        remaining = self._budget.remaining(self._trials, self._confirming())
        self._progress(
            TuningProgress(
                self._trials, self._budget.trials, self._budget.elapsed, remaining, default, best,
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
