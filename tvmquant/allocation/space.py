"""The plans that are possible for a network, and what they take."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from tvmquant.allocation.costs import QUANTITIES, Costs
from tvmquant.allocation.program import groups_of, least, solve
from tvmquant.bit_choice import W8A8, BitChoice
from tvmquant.errors import AllocationError

if TYPE_CHECKING:
    from tvmquant.allocation.program import Table
    from tvmquant.layers import Layer


class Space:
    """The choices of every layer, their perturbations and costs.

    Parameters
    ----------
    layers, perturbation, pinned, choices, pin_ends, excluded
        As of `tvmquant.allocation.allocate`.
    costs : Costs

    Raises
    ------
    AllocationError
        When a pinned layer or its choice is impossible, tied layers are pinned to different
        activation widths, or a perturbation or cost is missing or no number.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        perturbation: Mapping[str, Mapping[str, float]],
        costs: Costs,
        pinned: Mapping[str, BitChoice],
        choices: Sequence[BitChoice],
        pin_ends: bool,
        excluded: Mapping[str, Collection[str]],
    ) -> None:
        if not layers:
            raise AllocationError("the model has no layer whose bit widths could be chosen")
        self.layers = {layer.id: layer for layer in layers}
        if len(self.layers) < len(layers):
            names = [layer.id for layer in layers]
            twice = next(name for name in names if names.count(name) > 1)
            raise AllocationError(f"two layers are named {twice!r}; name the ONNX nodes apart")
        for name in pinned:
            if name not in self.layers:
                close = difflib.get_close_matches(name, self.layers, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "`tvmquant inspect` lists them"
                raise AllocationError(f"pinned layer {name!r} is none of the model's; {hint}")
        self.costs = costs
        self.pinned = dict(pinned)
        self.pin_ends = pin_ends
        self.excluded = excluded
        self.wanted = list(dict.fromkeys([*choices, W8A8]))
        self.groups = groups_of(layers)
        self.options = {layer.id: self._options(layer) for layer in layers}
        self.omega = {
            name: {choice: _omega(perturbation, name, choice) for choice in row}
            for name, row in self.options.items()
        }
        self.quantities = [q for q in QUANTITIES if q != "latency" or costs.latency is not None]
        self.tables = {quantity: self._table(quantity) for quantity in self.quantities}
        self._check_ties()

    def _options(self, layer: Layer) -> list[BitChoice]:
        if layer.id in self.pinned:
            choice = self.pinned[layer.id]
            if not layer.allows(choice):
                raise AllocationError(
                    f"layer {layer.id!r} ({layer.op}) is pinned to {choice}, for which there is no "
                    f"kernel; expected {layer.expected}"
                )
            return [choice]
        if layer.imported is not None:
            return [layer.imported]
        if self.is_end(layer):
            return [W8A8]
        return [c for c in self._able(layer) if c == W8A8 or self._is_timed(layer, c)]

    def _able(self, layer: Layer) -> list[BitChoice]:
        out = self.excluded.get(layer.id, ())
        return [c for c in self.wanted if layer.allows(c) and (c == W8A8 or str(c) not in out)]

    def _is_timed(self, layer: Layer, choice: BitChoice) -> bool:
        times = self.costs.latency
        return times is None or str(choice) in times.get(layer.id, {})

    def _check_ties(self) -> None:
        for members in self.groups.values():
            read = {name: {c.activation for c in self.options[name]} for name in members}
            if set.intersection(*read.values()):
                continue
            fixed = [name for name in members if len(read[name]) == 1]
            names = ", ".join(f"{name!r} ({self.constraint(name)})" for name in fixed)
            raise AllocationError(
                f"layers that read the same activation cannot have different widths of it: {names}"
            )

    def constraint(self, name: str) -> str:
        """Say what leaves a layer a single choice; empty where it has several."""
        layer, options = self.layers[name], self.options[name]
        if name in self.pinned:
            return f"pinned to {options[0]}"
        if layer.imported is not None:
            return f"{layer.imported} in the model"
        if self.is_end(layer):
            return f"{layer.position} layer"
        if len(options) > 1:
            return ""
        if len(self._able(layer)) > 1:
            return "no other choice was measured"
        if self.excluded.get(name):
            return "its other choices are excluded"
        narrow = any(choice != W8A8 for choice in self.wanted)
        return f"no other kernel for {layer.op}" if narrow else "no other choice is allowed"

    def is_end(self, layer: Layer) -> bool:
        """Whether a layer keeps w8a8 because it is the first or the last."""
        return self.pin_ends and bool(layer.position) and layer.imported is None

    # -- totals ---------------------------------------------------------------------------------

    def _table(self, quantity: str) -> Table:
        return {
            name: {choice: self.costs.of(quantity, self.layers[name], choice) for choice in row}
            for name, row in self.options.items()
        }

    def total(self, quantity: str, plan: Mapping[str, BitChoice]) -> float:
        """Return what a plan takes."""
        return self.costs.total(quantity, list(self.layers.values()), plan)

    def reference(self, quantity: str) -> float:
        """Return what w8a8 takes, of every layer whose choice is free."""
        plan = {name: layer.imported or W8A8 for name, layer in self.layers.items()}
        return self.total(quantity, plan)

    def extremes(self, quantity: str) -> tuple[float, float]:
        """Return the least and the most that any plan takes."""
        table = self.tables[quantity]
        negative = {name: {c: -value for c, value in row.items()} for name, row in table.items()}
        low, high = (self.total(quantity, least(self._all, [t])) for t in (table, negative))
        return low, high

    @property
    def _all(self) -> list[Layer]:
        return list(self.layers.values())

    # -- plans ----------------------------------------------------------------------------------

    def best(self, limits: Mapping[str, float]) -> dict[str, BitChoice] | None:
        """Return the plan of least perturbation, of equal ones the faster, then the smaller."""
        ties = [self.tables[q] for q in self.quantities if q != "bops"]
        return solve(self._all, self.omega, self._limits(limits), ties)

    def least(self, quantity: str, limits: Mapping[str, float]) -> float | None:
        """Return the least of a quantity within limits of others; None where they conflict."""
        plan = solve(self._all, self.tables[quantity], self._limits(limits))
        return None if plan is None else self.total(quantity, plan)

    def _limits(self, limits: Mapping[str, float]) -> list[tuple[Table, float]]:
        fixed = {"latency": self.costs.fixed_latency_ms}
        return [(self.tables[q], limit - fixed.get(q, 0.0)) for q, limit in limits.items()]


def _omega(perturbation: Mapping[str, Mapping[str, float]], name: str, choice: BitChoice) -> float:
    value = perturbation.get(name, {}).get(str(choice))
    if value is None:
        raise AllocationError(
            f"layer {name!r} has no sensitivity for {choice}; estimate it for that choice too"
        )
    if not math.isfinite(value):
        raise AllocationError(
            f"layer {name!r}: its sensitivity for {choice} is {value}; expected a finite number, "
            "estimate it again"
        )
    return float(value)
