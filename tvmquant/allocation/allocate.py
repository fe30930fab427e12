"""Choose the bit widths of least perturbation within budgets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmquant.allocation.budget import Budget
from tvmquant.allocation.costs import QUANTITIES, Costs
from tvmquant.allocation.explain import explain_choices, explain_infeasible
from tvmquant.allocation.space import Space
from tvmquant.bit_choice import DEFAULT_CHOICES, BitChoice
from tvmquant.errors import AllocationError
from tvmquant.progress import Progress

if TYPE_CHECKING:
    from tvmquant.layers import Layer


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
    extremes : dict of str to (float, float)
        The least and the most of each quantity that plans with these pins and choices take.
    pinned : frozenset of str
        Layers that the user pinned.
    """

    choices: dict[str, BitChoice]
    reasons: dict[str, str]
    perturbation: float
    totals: dict[str, float]
    reference: dict[str, float]
    limits: dict[str, float]
    extremes: dict[str, tuple[float, float]]
    pinned: frozenset[str]


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
    excluded: Mapping[str, Collection[str]] | None = None,
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
    excluded : mapping of str to collection of str, optional
        Choices by layer that it takes only if it is pinned to them; never w8a8.
    pin_ends : bool
        The first and the last layer take w8a8 unless they are pinned to another choice.

    Raises
    ------
    AllocationError
        When no plan keeps the budgets (names the limit and the least value), a layer or choice is
        unknown, or a perturbation or latency is missing or no finite number.

    Notes
    -----
    Of plans with equal perturbation the faster is taken, then the smaller, then the wider.
    """
    costs = Costs(latency, fixed_latency_ms)
    space = Space(layers, perturbation, costs, pinned or {}, choices, pin_ends, excluded or {})
    return _allocation(space, _limits(space, latency_budget, size, bops))


def pareto(
    layers: Sequence[Layer],
    perturbation: Mapping[str, Mapping[str, float]],
    *,
    quantity: str = "latency",
    points: int = 16,
    latency: Mapping[str, Mapping[str, float]] | None = None,
    fixed_latency_ms: float = 0.0,
    latency_budget: str | None = None,
    size: str | None = None,
    bops: str | None = None,
    pinned: Mapping[str, BitChoice] | None = None,
    choices: Sequence[BitChoice] = DEFAULT_CHOICES,
    excluded: Mapping[str, Collection[str]] | None = None,
    pin_ends: bool = True,
    progress: Progress | None = None,
) -> list[Allocation]:
    """Return the plans of least perturbation for limits on one quantity, between the extremes.

    Parameters
    ----------
    quantity : str
        ``latency``, ``size`` or ``bops``.
    points : int
        Limits to solve for, >= 2, evenly spaced from the least reachable value to that of the plan
        of least perturbation; plans that repeat are left out.
    latency_budget, size, bops : str, optional
        Budgets that every plan keeps.
    progress : callable (done, total), optional

    The others are those of `allocate`.

    Returns
    -------
    list of Allocation
        In order of the quantity, each with less perturbation than the one before.

    Raises
    ------
    AllocationError
        As `allocate`.
    """
    if quantity not in QUANTITIES or points < 2:
        raise AllocationError(
            f"a frontier of {points} points over {quantity!r}; expected at least 2 points over "
            f"{', '.join(QUANTITIES)}"
        )
    costs = Costs(latency, fixed_latency_ms)
    space = Space(layers, perturbation, costs, pinned or {}, choices, pin_ends, excluded or {})
    if quantity not in space.quantities:
        raise AllocationError("a frontier over latency needs measured latencies; pass latency")
    limits = _limits(space, latency_budget, size, bops)
    low = space.least(quantity, limits)
    if low is None:
        raise AllocationError(explain_infeasible(space, limits))
    highest = _allocation(space, limits)
    high = highest.totals[quantity]
    found: list[Allocation] = []
    for index in range(points - 1):
        limit = low + (high - low) * index / (points - 1)
        plan = _allocation(space, {**limits, quantity: limit})
        if not found or plan.perturbation < found[-1].perturbation:
            found.append(plan)
        if progress is not None:
            progress(index + 1, points)
    if not found or highest.perturbation < found[-1].perturbation:
        found.append(highest)
    if progress is not None:
        progress(points, points)
    return found


def _limits(
    space: Space, latency: str | None, size: str | None, bops: str | None
) -> dict[str, float]:
    texts = {"latency": latency, "size": size, "bops": bops}
    return {
        quantity: Budget.parse(text, quantity).limit(space.reference(quantity))
        for quantity, text in texts.items()
        if text is not None
    }


def _allocation(space: Space, limits: Mapping[str, float]) -> Allocation:
    chosen = space.best(limits)
    if chosen is None:
        raise AllocationError(explain_infeasible(space, limits))
    return Allocation(
        choices=chosen,
        reasons=explain_choices(space, chosen, limits),
        perturbation=sum(space.omega[name][choice] for name, choice in chosen.items()),
        totals={q: space.total(q, chosen) for q in space.quantities},
        reference={q: space.reference(q) for q in space.quantities},
        limits=dict(limits),
        extremes={q: space.extremes(q) for q in space.quantities},
        pinned=frozenset(space.pinned),
    )
