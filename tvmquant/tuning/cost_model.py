"""Predict how much faster than its default a tiling is, learning from what was measured.

One gradient-boosted model for all workloads: its features describe layer and tiling by numbers, its
target is ``log(seconds / seconds of the workload's default)``, so that what is learned of one layer
helps with the next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.schedules import families
from tvmquant.tuning.workload import Workload

# With fewer measurements a prediction is no better than chance.
FEWEST = 16
ROUNDS = 120


def features(workload: Workload, tiling: Any, threads: int) -> dict[str, float]:
    """Return what may decide the time of a kernel, by name.

    Every number of spec and tiling, on a logarithmic scale where positive; texts as one feature for
    each value; what `Family.figures` derives, and from it the share of the work that is not
    padding, the work of one task, and the share of the threads' time in use.
    """
    found: dict[str, float] = {f"family={workload.family}": 1.0}
    _flatten("spec", workload.spec, found)
    _flatten("tiling", tiling, found)
    figures = families.kernels(workload.family).figures(workload.spec, tiling)
    tasks = max(figures["tasks"], 1.0)
    rounds = math.ceil(tasks / threads)
    derived = {
        **figures,
        "task_work": figures["work"] / tasks,
        "tasks_per_thread": tasks / threads,
        "busiest_work": figures["work"] / tasks * rounds,
    }
    found.update({f"log {name}": math.log2(max(value, 1e-9)) for name, value in derived.items()})
    found["efficiency"] = figures["useful"] / max(figures["work"], 1.0)
    found["balance"] = tasks / (rounds * threads)
    return found


def _flatten(name: str, value: Any, found: dict[str, float]) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _flatten(f"{name}.{field.name}", getattr(value, field.name), found)
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            _flatten(f"{name}.{index}", item, found)
    elif isinstance(value, str):
        found[f"{name}={value}"] = 1.0
    elif isinstance(value, bool):
        found[name] = float(value)
    elif isinstance(value, (int, float)):
        found[name] = math.log2(value) if value > 0 else -1.0


class CostModel:
    """Ranks tilings; without enough measurements, all alike.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._columns: dict[str, int] = {}
        self._booster: Any = None

    @property
    def trained(self) -> bool:
        """Whether `predict` tells tilings apart."""
        return self._booster is not None

    def fit(self, rows: Sequence[Mapping[str, float]], targets: Sequence[float]) -> None:
        """Learn from measurements, instead of those learned from before.

        Parameters
        ----------
        rows : sequence of features
        targets : sequence of float
            ``log(seconds / default seconds)`` of each.
        """
        if len(rows) < FEWEST:
            return
        import xgboost

        names = sorted({name for row in rows for name in row})
        self._columns = {name: index for index, name in enumerate(names)}
        data = xgboost.DMatrix(self._matrix(rows), np.asarray(targets, np.float32))
        options = {
            "objective": "reg:squarederror", "eta": 0.15, "max_depth": 6, "subsample": 0.8,
            "min_child_weight": 1, "seed": self._seed, "nthread": 2, "verbosity": 0,
        }  # fmt: skip
        self._booster = xgboost.train(options, data, num_boost_round=ROUNDS)

    def predict(self, rows: Sequence[Mapping[str, float]]) -> NDArray[np.float32]:
        """Return the predicted target of each row; zeros before `fit` had enough to learn from."""
        if self._booster is None or not rows:
            return np.zeros(len(rows), np.float32)
        import xgboost

        predicted: NDArray[np.float32] = self._booster.predict(xgboost.DMatrix(self._matrix(rows)))
        return predicted

    def _matrix(self, rows: Sequence[Mapping[str, float]]) -> NDArray[np.float32]:
        # a text that does not occur is 0, and so is a number that the family does not have
        matrix = np.zeros((len(rows), len(self._columns)), np.float32)
        for index, row in enumerate(rows):
            for name, value in row.items():
                column = self._columns.get(name)
                if column is not None:
                    matrix[index, column] = value
        return matrix
