"""Choose the bit widths of least perturbation within budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tvmquant.allocation.budget import Budget, format_amount
from tvmquant.allocation.costs import QUANTITIES, Costs
from tvmquant.allocation.program import Table, groups_of, least, solve
from tvmquant.bit_choice import DEFAULT_CHOICES, W8A8, BitChoice
from tvmquant.errors import AllocationError

if TYPE_CHECKING:
    from tvmquant.layers import Layer

# Of plans whose perturbations differ by less than this share of the largest one's scale, the faster
# is taken, then the smaller: no sensitivity is known to so many digits.
TIE_LATENCY: Final = 1e-6
TIE_SIZE: Final = 1e-7
# A narrower choice that saves less than this share of a layer's cost buys nothing.
WORTHWHILE: Final = 0.02
# Limits may be exceeded by rounding only.
SLACK: Final = 1e-9


@dataclass(frozen=True)
class Allocation:
    """A choice for every layer.

    Parameters
    ----------
    choices : dict of str to BitChoice
        In execution order.
    reasons : dict of str to str
        Why each layer got its choice.
    perturbation : float
    totals, reference : dict of str to float
        What the plan, and uniform w8a8, take: bytes, bit operations, and milliseconds where
        latencies are known.
    limits : dict of str to float
        The absolute budgets.
    """

    choices: dict[str, BitChoice]
    reasons: dict[str, str]
    perturbation: float
    totals: dict[str, float]
    reference: dict[str, float]
    limits: dict[str, float]


def allocate(
    layers: Sequence[Layer],
    perturbation: Mapping[str, Mapping[str, float]],
    *,
    latency: Mapping[str, Mapping[str, float]] | None = None,
    fixed_latency_ms: float = 0.0,
    latency_budget: str | None = None,
    size: str | None = None,
    bops: str | None = None,
    pinned: Mapping[str, BitChoice] | None = None,
    choices: Sequence[BitChoice] = DEFAULT_CHOICES,
    pin_ends: bool = True,
) -> Allocation:
    """Solve the integer linear program of `tvmquant.allocation.program`.

    Parameters
    ----------
    layers : sequence of Layer
    perturbation : mapping
        Omega by layer and choice.
    latency : mapping, optional
        Milliseconds by layer and choice; what is missing cannot be chosen. Needed for a latency
        budget.
    fixed_latency_ms : float
        Of what is no layer.
    latency_budget, size, bops : str, optional
        As of `Budget.parse`; any combination.
    pinned : mapping of str to BitChoice, optional
        Layers that must take a choice.
    choices : sequence of BitChoice
        What layers may take, besides w8a8.
    pin_ends : bool
        The first and the last layer take w8a8 unless they are pinned to another choice.

    Raises
    ------
    AllocationError
        When no plan keeps the budgets (names the limit and the least value), a layer or choice is
        unknown, or a perturbation is missing or not finite.
    """
    space = _Space(
        layers, perturbation, Costs(latency, fixed_latency_ms), pinned or {}, choices, pin_ends
    )
    texts = {"latency": latency_budget, "size": size, "bops": bops}
    limits = {
        quantity: Budget.parse(text, quantity).limit(space.reference(quantity))
        for quantity, text in texts.items()
        if text is not None
    }
    return space.allocation(limits)


def pareto(
    layers: Sequence[Layer],
    perturbation: Mapping[str, Mapping[str, float]],
    *,
    quantity: str = "latency",
    points: int = 16,
    latency: Mapping[str, Mapping[str, float]] | None = None,
    fixed_latency_ms: float = 0.0,
    pinned: Mapping[str, BitChoice] | None = None,
    choices: Sequence[BitChoice] = DEFAULT_CHOICES,
    pin_ends: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[Allocation]:
    """Return the plans of least perturbation for limits from the least reachable to uniform w8a8.

    Parameters
    ----------
    quantity : str
        ``latency``, ``size`` or ``bops``.
    points : int
        Limits to solve for, >= 2, evenly spaced; plans that repeat are left out.
    progress : callable (done, total), optional

    The others are those of `allocate`.

    Returns
    -------
    list of Allocation
        In order of the quantity, each with less perturbation than the one before.
    """
    if quantity not in QUANTITIES or points < 2:
        raise AllocationError(
            f"a frontier of {points} points over {quantity!r}; expected at least 2 points over "
            f"{', '.join(QUANTITIES)}"
        )
    space = _Space(
        layers, perturbation, Costs(latency, fixed_latency_ms), pinned or {}, choices, pin_ends
    )
    low, high = space.least_total(quantity), space.reference(quantity)
    found: list[Allocation] = []
    for index in range(points):
        limit = low + (high - low) * index / (points - 1)
        plan = space.allocation({quantity: max(limit, low)})
        if not found or plan.perturbation < found[-1].perturbation:
            found.append(plan)
        if progress is not None:
            progress(index + 1, points)
    return found


class _Space:
    """The plans that are possible, and what they cost."""

    def __init__(
        self,
        layers: Sequence[Layer],
        perturbation: Mapping[str, Mapping[str, float]],
        costs: Costs,
        pinned: Mapping[str, BitChoice],
        choices: Sequence[BitChoice],
        pin_ends: bool,
    ) -> None:
        if not layers:
            raise AllocationError("the model has no layer whose bit widths could be chosen")
        self.layers = layers
        self.costs = costs
        self.pinned = pinned
        self.pin_ends = pin_ends
        known = {layer.id for layer in layers}
        if strangers := [name for name in pinned if name not in known]:
            raise AllocationError(
                f"pinned layer {strangers[0]!r} is none of the model's; `tvmquant inspect` lists "
                "them"
            )
        wanted = list(dict.fromkeys([*choices, W8A8]))
        self.options = {layer.id: self._options(layer, wanted) for layer in layers}
        self.omega = {
            layer.id: {c: _omega(perturbation, layer, c) for c in self.options[layer.id]}
            for layer in layers
        }

    def _options(self, layer: Layer, wanted: Sequence[BitChoice]) -> list[BitChoice]:
        if layer.id in self.pinned:
            choice = self.pinned[layer.id]
            if not layer.allows(choice):
                raise AllocationError(
                    f"layer {layer.id!r} ({layer.op}) is pinned to {choice}, for which there is no "
                    f"kernel; expected one of {', '.join(str(c) for c in layer.choices)}"
                )
            return [choice]
        if self.pin_ends and layer.position:
            return [W8A8]
        allowed = [choice for choice in wanted if layer.allows(choice)]
        if self.costs.latency is None:
            return allowed
        measured = self.costs.latency.get(layer.id, {})
        return [choice for choice in allowed if choice == W8A8 or str(choice) in measured]

    # -- totals ---------------------------------------------------------------------------------

    @property
    def quantities(self) -> list[str]:
        """The quantities that are known."""
        return [q for q in QUANTITIES if q != "latency" or self.costs.latency is not None]

    def table(self, quantity: str) -> Table:
        """Return what every option of every layer takes."""
        return {
            layer.id: {c: self.costs.of(quantity, layer, c) for c in self.options[layer.id]}
            for layer in self.layers
        }

    def reference(self, quantity: str) -> float:
        """Return what uniform w8a8 takes."""
        uniform = {layer.id: W8A8 for layer in self.layers}
        return self.costs.total(quantity, self.layers, uniform)

    def least_total(self, quantity: str) -> float:
        """Return the least that any plan takes."""
        chosen = least(self.layers, self.table(quantity))
        if chosen is None:
            raise AllocationError(self._contradiction())
        return self.costs.total(quantity, self.layers, chosen)

    # -- plans ----------------------------------------------------------------------------------

    def allocation(self, limits: Mapping[str, float]) -> Allocation:
        """Return the best plan within absolute limits."""
        tables = {quantity: self.table(quantity) for quantity in limits}
        if not limits:
            chosen = least(self.layers, self._objective())
        else:
            chosen = solve(
                self.layers,
                self._objective(),
                [(tables[q], self._for_layers(q, limit)) for q, limit in limits.items()],
            )
        if chosen is None:
            raise AllocationError(self._infeasible(limits))
        totals = {q: self.costs.total(q, self.layers, chosen) for q in self.quantities}
        return Allocation(
            choices=chosen,
            reasons={layer.id: self._reason(layer, chosen, limits) for layer in self.layers},
            perturbation=sum(self.omega[layer][choice] for layer, choice in chosen.items()),
            totals=totals,
            reference={q: self.reference(q) for q in self.quantities},
            limits=dict(limits),
        )

    def _for_layers(self, quantity: str, limit: float) -> float:
        fixed = self.costs.fixed_latency_ms if quantity == "latency" else 0.0
        return (limit - fixed) * (1.0 + SLACK)

    def _objective(self) -> Table:
        """Return Omega with what settles ties: speed, then size."""
        largest = max(max(row.values()) for row in self.omega.values()) or 1.0
        extra = [(TIE_SIZE, "size")]
        if self.costs.latency is not None:
            extra.append((TIE_LATENCY, "latency"))
        tables = []
        for share, quantity in extra:
            table = self.table(quantity)
            most = sum(max(row.values()) for row in table.values())
            tables.append((share / (most or 1.0), table))
        return {
            layer: {
                choice: omega + largest * sum(share * table[layer][choice]
                                              for share, table in tables)
                for choice, omega in row.items()
            }
            for layer, row in self.omega.items()
        }  # fmt: skip

    # -- words ----------------------------------------------------------------------------------

    def _contradiction(self) -> str:
        for members in groups_of(self.layers).values():
            widths = [{c.a_bits for c in self.options[layer.id]} for layer in members]
            if not set.intersection(*widths):
                names = ", ".join(
                    f"{layer.id!r} ({', '.join(str(c) for c in self.options[layer.id])})"
                    for layer in members
                )
                return (
                    f"layers that read the same activation are pinned to different widths: {names}"
                )
        return "no plan is possible"

    def _infeasible(self, limits: Mapping[str, float]) -> str:
        lines = []
        for quantity, limit in limits.items():
            reachable = self.least_total(quantity)
            if self._for_layers(quantity, reachable) > self._for_layers(quantity, limit):
                lines.append(self._unreachable(quantity, limit, reachable, ""))
        if lines:
            return "; ".join(lines)
        for quantity, limit in limits.items():
            others = {q: value for q, value in limits.items() if q != quantity}
            chosen = solve(
                self.layers,
                self.table(quantity),
                [(self.table(q), self._for_layers(q, value)) for q, value in others.items()],
            )
            if chosen is not None:
                reachable = self.costs.total(quantity, self.layers, chosen)
                lines.append(
                    self._unreachable(quantity, limit, reachable, f" within {_amounts(others)}")
                )
        return "the budgets hold alone but not together: " + "; ".join(lines)

    def _unreachable(self, quantity: str, limit: float, reachable: float, within: str) -> str:
        share = reachable / self.reference(quantity)
        return (
            f"{quantity} cannot be {format_amount(quantity, limit)}{within}: the least is "
            f"{format_amount(quantity, reachable)} ({math.ceil(share * 1000) / 1000:.3f}x of w8a8)"
        )

    def _reason(
        self, layer: Layer, chosen: Mapping[str, BitChoice], limits: Mapping[str, float]
    ) -> str:
        choice, options = chosen[layer.id], self.options[layer.id]
        if layer.id in self.pinned:
            return "pinned"
        if self.pin_ends and layer.position:
            return f"{layer.position} layer"
        if len(options) == 1:
            return f"no other kernel for {layer.op}"
        if choice != W8A8:
            return self._gain(layer, choice, limits)
        quantities = list(limits) or self.quantities[:1]
        worth = [
            c for c in options
            if c != W8A8 and any(self._saving(layer, c, q) > WORTHWHILE for q in quantities)
        ]  # fmt: skip
        if not worth:
            return self._buys_nothing(layer, quantities[0])
        tied = [m for m in self.layers if m.group == layer.group and m.id != layer.id]
        if tied and all(c.a_bits < 8 for c in worth):
            return f"tied to {tied[0].id}, which needs 8-bit activations"
        cheapest = min(worth, key=lambda c: self.omega[layer.id][c])
        added = self.omega[layer.id][cheapest] - self.omega[layer.id][W8A8]
        return f"sensitive: {cheapest} would add {added:.3g}"

    def _gain(self, layer: Layer, choice: BitChoice, limits: Mapping[str, float]) -> str:
        added = self.omega[layer.id][choice] - self.omega[layer.id][W8A8]
        amounts = [
            format_amount(q, self.costs.of(q, layer, W8A8) - self.costs.of(q, layer, choice))
            for q in (list(limits) or self.quantities[:1])
            if self._saving(layer, choice, q) > WORTHWHILE
        ]
        saves = f"saves {' and '.join(amounts)}" if amounts else "goes with its tied layers"
        return f"{saves}, adds {added:.3g}"

    def _saving(self, layer: Layer, choice: BitChoice, quantity: str) -> float:
        wide = self.costs.of(quantity, layer, W8A8)
        return 1.0 - self.costs.of(quantity, layer, choice) / wide if wide else 0.0

    def _buys_nothing(self, layer: Layer, quantity: str) -> str:
        narrow = [c for c in self.options[layer.id] if c != W8A8]
        best = min(narrow, key=lambda c: self.costs.of(quantity, layer, c))
        return (
            f"narrower buys nothing here: {best} "
            f"{format_amount(quantity, self.costs.of(quantity, layer, best))} against "
            f"{format_amount(quantity, self.costs.of(quantity, layer, W8A8))}"
        )


def _amounts(limits: Mapping[str, float]) -> str:
    return " and ".join(f"{q} {format_amount(q, limit)}" for q, limit in limits.items())


def _omega(
    perturbation: Mapping[str, Mapping[str, float]], layer: Layer, choice: BitChoice
) -> float:
    value = perturbation.get(layer.id, {}).get(str(choice))
    if value is None:
        raise AllocationError(
            f"layer {layer.id!r} has no sensitivity for {choice}; estimate it for that choice too"
        )
    if not math.isfinite(value):
        raise AllocationError(f"layer {layer.id!r}: its sensitivity for {choice} is {value}")
    return float(value)
