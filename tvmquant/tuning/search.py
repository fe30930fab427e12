"""Propose tilings to measure: an evolutionary search among the valid tilings of one workload."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Costs of tilings, by their index in the space: less is better.
Predict = Callable[[Sequence[int]], NDArray[np.float32]]

POPULATION = 96
GENERATIONS = 4
ELITE = 24
MUTATED = 0.7


class Search:
    """The search of one workload.

    Parameters
    ----------
    tilings : sequence of dataclasses
        The space: all valid tilings, of one type.
    rng : numpy Generator

    Notes
    -----
    A mutation changes one field to another of its values and moves to the valid tiling with that
    value which agrees with the parent in most other fields; a crossover moves to the valid tiling
    that agrees most with a field-by-field mixture of two parents.
    """

    def __init__(self, tilings: Sequence[Any], rng: np.random.Generator) -> None:
        self._rng = rng
        names = [field.name for field in dataclasses.fields(tilings[0])]
        columns = [[getattr(tiling, name) for tiling in tilings] for name in names]
        codes = [{value: code for code, value in enumerate(dict.fromkeys(c))} for c in columns]
        self._codes: NDArray[np.int32] = np.array(
            [[code[v] for v in c] for c, code in zip(columns, codes, strict=True)], np.int32
        ).T
        self._varying = [i for i, code in enumerate(codes) if len(code) > 1]

    def __len__(self) -> int:
        """Return the size of the space."""
        return len(self._codes)

    def propose(
        self, measured: Mapping[int, float], count: int, predict: Predict, *, explore: float = 0.15
    ) -> list[int]:
        """Return the tilings to measure next.

        Parameters
        ----------
        measured : mapping of int to float
            Cost by index of what was measured already; infinite where it failed.
        count : int
            How many to return at most; fewer where the space is used up.
        predict : callable
            Ranks candidates.
        explore : float
            Share of proposals that are drawn at random instead.

        Returns
        -------
        list of int
            Distinct indices, none of them measured, the most promising first.
        """
        fresh = np.setdiff1d(np.arange(len(self)), np.fromiter(measured, np.int64, len(measured)))
        count = min(count, len(fresh))
        if count == 0:
            return []
        ranked = [i for i in self._evolve(measured, predict) if i not in measured]
        at_random = int(self._rng.binomial(count, explore))
        chosen = dict.fromkeys(ranked[: count - at_random])
        rest = self._rng.permutation(np.setdiff1d(fresh, np.fromiter(chosen, np.int64)))
        chosen.update(dict.fromkeys(int(i) for i in rest[: count - len(chosen)]))
        return list(chosen)

    def _evolve(self, measured: Mapping[int, float], predict: Predict) -> list[int]:
        """Return all that the evolution visited, the best predicted first."""
        parents = sorted(measured, key=lambda i: measured[i])[:ELITE]
        newcomers = max(0, min(POPULATION // 2, len(self)))
        drawn = self._rng.choice(len(self), newcomers, replace=False)
        population = list(dict.fromkeys([*parents, *(int(i) for i in drawn)]))
        costs: dict[int, float] = {}
        for _ in range(GENERATIONS):
            unknown = [i for i in population if i not in costs]
            costs.update(zip(unknown, (float(c) for c in predict(unknown)), strict=True))
            # what was measured counts as measured, so that the search stays near what is good
            elite = sorted(costs, key=lambda i: measured.get(i, costs[i]))[:ELITE]
            population = [self._child(elite) for _ in range(POPULATION)]
        unknown = list(dict.fromkeys(i for i in population if i not in costs))
        costs.update(zip(unknown, (float(c) for c in predict(unknown)), strict=True))
        order = self._rng.permutation(list(costs))  # no preference among equals
        return sorted((int(i) for i in order), key=lambda i: costs[i])

    def _child(self, elite: Sequence[int]) -> int:
        parent = self._codes[elite[int(self._rng.integers(len(elite)))]]
        if not self._varying:
            return int(elite[0])
        if self._rng.random() < MUTATED:
            field = self._varying[self._rng.integers(len(self._varying))]
            values = np.setdiff1d(self._codes[:, field], parent[field])
            value = values[self._rng.integers(len(values))]
            return self._nearest(parent, np.flatnonzero(self._codes[:, field] == value))
        other = self._codes[elite[int(self._rng.integers(len(elite)))]]
        mixture = np.where(self._rng.random(len(parent)) < 0.5, parent, other)
        return self._nearest(mixture, np.arange(len(self)))

    def _nearest(self, code: NDArray[np.int32], among: NDArray[np.int64]) -> int:
        agreement = (self._codes[among] == code).sum(axis=1)
        nearest = among[agreement == agreement.max()]
        return int(nearest[self._rng.integers(len(nearest))])
