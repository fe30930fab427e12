"""Say in words why a layer got its choice, and why no plan keeps the budgets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tvmquant.allocation.budget import format_amount
from tvmquant.bit_choice import W8A8, BitChoice

if TYPE_CHECKING:
    from tvmquant.allocation.space import Space
    from tvmquant.layers import Layer

# A narrower choice that saves less than this share of a layer's cost buys nothing.
WORTHWHILE: Final = 0.02


def explain_choices(
    space: Space, chosen: Mapping[str, BitChoice], limits: Mapping[str, float]
) -> dict[str, str]:
    """Return the reason of every layer's choice.

    Parameters
    ----------
    space : Space
    chosen : mapping of str to BitChoice
        The best plan within the limits.
    limits : mapping of str to float
        By quantity, absolute.
    """
    reasoner = _Reasoner(space, chosen, list(limits))
    return {name: reasoner.reason(layer) for name, layer in space.layers.items()}


def explain_infeasible(space: Space, limits: Mapping[str, float]) -> str:
    """Say which limits cannot hold, alone or together, and the least that can be reached."""
    lines = []
    for quantity, limit in limits.items():
        reachable = space.least(quantity, {})
        if reachable is not None and space.least(quantity, {quantity: limit}) is None:
            lines.append(_unreachable(space, quantity, limit, reachable, {}))
    if lines:
        return "; ".join(lines) + _effect_of_pins(space)
    # of limits that hold alone, the fewest that conflict
    for count in range(2, len(limits) + 1):
        for names in itertools.combinations(limits, count):
            kept = {name: limits[name] for name in names}
            if space.best(kept) is None:
                lines.append(_conflict(space, kept))
        if lines:
            break
    return "; ".join(lines) + _effect_of_pins(space)


def _conflict(space: Space, limits: Mapping[str, float]) -> str:
    lines = []
    for quantity, limit in limits.items():
        others = {name: value for name, value in limits.items() if name != quantity}
        reachable = space.least(quantity, others)
        if reachable is not None:
            lines.append(_unreachable(space, quantity, limit, reachable, others))
    return f"{' and '.join(limits)} hold alone but not together: " + ", or ".join(lines)


def _unreachable(
    space: Space, quantity: str, limit: float, reachable: float, others: Mapping[str, float]
) -> str:
    amounts = " and ".join(f"{name} {format_amount(name, value)}" for name, value in others.items())
    reference = space.reference(quantity)
    share = f" ({_round_up(reachable / reference):.4g}x of w8a8)" if reference else ""
    return (
        f"{quantity} cannot be {format_amount(quantity, limit)}"
        f"{f' within {amounts}' if amounts else ''}: the least is "
        f"{format_amount(quantity, _round_up(reachable))}{share}"
    )


def _effect_of_pins(space: Space) -> str:
    ends = [layer.id for layer in space.layers.values() if space.is_end(layer)]
    parts = []
    if space.pinned:
        parts.append(f"{len(space.pinned)} layers pinned")
    if ends:
        parts.append(f"the first and last layers ({', '.join(ends)}) at w8a8")
    return f"; this is with {' and '.join(parts)}" if parts else ""


def _round_up(value: float) -> float:
    """Return a value of four digits that is not less, so that it can be asked for."""
    if value <= 0.0:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    # sums that are whole but for their rounding stay as they are
    return math.ceil(value / unit * (1.0 - 1e-12)) * unit


def _is_wide(choice: BitChoice) -> bool:
    """Whether a choice has the activations that every layer can read."""
    return choice.activation == W8A8.activation


class _Reasoner:
    def __init__(self, space: Space, chosen: Mapping[str, BitChoice], limited: list[str]) -> None:
        self.space = space
        self.chosen = chosen
        self.limited = limited
        # without a limit, what narrower choices are for in the first place
        self.quantities = limited or space.quantities[:1]
        self.most = max(
            (
                space.omega[name][choice] - space.omega[name][W8A8]
                for name in chosen
                if W8A8 in space.options[name]
                for choice in space.options[name]
            ),
            default=0.0,
        )

    def reason(self, layer: Layer) -> str:
        fixed = self.space.constraint(layer.id)
        if fixed:
            return "pinned" if layer.id in self.space.pinned else fixed
        choice = self.chosen[layer.id]
        words = self._narrow(layer, choice) if choice != W8A8 else self._wide(layer)
        return words + self._why_not_one_bit(layer, choice)

    def _narrow(self, layer: Layer, choice: BitChoice) -> str:
        amounts = [
            format_amount(q, self._cost(layer, W8A8, q) - self._cost(layer, choice, q))
            for q in self.quantities
            if self._saves(layer, choice, q)
        ]
        added = self._added(layer, choice)
        words = [f"adds {added:.3g}" if added > 0.0 else "adds no perturbation"]
        if amounts:
            words.insert(0, f"saves {' and '.join(amounts)}")
        elif tied := self._tied(layer):
            words.insert(0, f"goes with {', '.join(tied)}, which reads the same activation")
        if "latency" in self.space.quantities and not self._saves(layer, choice, "latency"):
            words.append(f"no faster here: {self._against(layer, choice, 'latency')}")
        return ", ".join(words)

    def _wide(self, layer: Layer) -> str:
        narrow = [c for c in self.space.options[layer.id] if c != W8A8]
        worth = [c for c in narrow if any(self._saves(layer, c, q) for q in self.quantities)]
        if not worth:
            quantity = self.quantities[0]
            best = min(narrow, key=lambda c: self._cost(layer, c, quantity))
            return f"narrower buys nothing here: {self._against(layer, best, quantity)}"
        tied = self._tied(layer)
        if tied and not any(map(_is_wide, worth)):
            return self._held(layer, tied)
        cheapest = min(worth, key=lambda c: self.space.omega[layer.id][c])
        added = self._added(layer, cheapest)
        if not self.limited:
            return f"no budget asks for less: {cheapest} would add {added:.3g}"
        ranks_first = max(self._added(layer, c) for c in narrow) == self.most > 0.0
        return f"{'most ' if ranks_first else ''}sensitive: {cheapest} would add {added:.3g}"

    def _why_not_one_bit(self, layer: Layer, choice: BitChoice) -> str:
        """Explain what keeps a layer from one bit that could have it; empty where nothing does."""
        bits = [c for c in self.space.options[layer.id] if c.weight.bits == c.activation.bits == 1]
        if not bits or choice in bits:
            return ""
        (one,) = bits
        quantity = self.quantities[0]
        if not self._saves(layer, one, quantity):
            return f"; one bit buys nothing here: {self._against(layer, one, quantity)}"
        return f"; one bit would add {self._added(layer, one):.3g}, as measured"

    def _held(self, layer: Layer, tied: list[str]) -> str:
        """Explain a layer that is kept wide by those that read the same activation."""
        for name in tied:
            if all(map(_is_wide, self.space.options[name])):
                why = self.space.constraint(name)
                return f"tied to {name}, which needs 8-bit activations{f' ({why})' if why else ''}"
        added = sum(
            min(self._added(self.space.layers[name], c) for c in row if not _is_wide(c))
            for name in [layer.id, *tied]
            for row in [self.space.options[name]]
        )
        return f"tied to {', '.join(tied)}: narrower activations would add {added:.3g} in all"

    def _tied(self, layer: Layer) -> list[str]:
        return [name for name in self.space.groups[layer.group] if name != layer.id]

    def _added(self, layer: Layer, choice: BitChoice) -> float:
        row = self.space.omega[layer.id]
        # a layer pinned to less has no perturbation at w8a8 to compare with
        return row[choice] - row.get(W8A8, row[choice])

    def _cost(self, layer: Layer, choice: BitChoice, quantity: str) -> float:
        return self.space.costs.of(quantity, layer, choice)

    def _saves(self, layer: Layer, choice: BitChoice, quantity: str) -> bool:
        wide = self._cost(layer, W8A8, quantity)
        return wide - self._cost(layer, choice, quantity) > WORTHWHILE * wide

    def _against(self, layer: Layer, choice: BitChoice, quantity: str) -> str:
        narrow, wide = (
            format_amount(quantity, self._cost(layer, c, quantity)) for c in (choice, W8A8)
        )
        return f"{choice} takes {narrow}, w8a8 {wide}"
