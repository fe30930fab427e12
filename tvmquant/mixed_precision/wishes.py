"""What a user asks of the bit widths of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvmquant.bit_choice import DEFAULT_CHOICES, W8A8, BitChoice

if TYPE_CHECKING:
    from tvmquant.sensitivity import Sensitivity


@dataclass(frozen=True)
class Wishes:
    """What the user asks of a plan.

    Parameters
    ----------
    latency, size, bops : str, optional
        Budgets, absolute (``12ms``, ``1.2MB``, ``2G``) or relative to uniform w8a8 (``0.8x``).
    choices : sequence of BitChoice
        What layers may take besides w8a8.
    pinned : mapping of str to BitChoice
        Layers that must take a choice.
    pin_ends : bool
        Keep the first and the last layer at w8a8.
    sensitivity : str
        Method of `tvmquant.sensitivity.estimate_sensitivity`; of what is given, its own.
    given : Sensitivity, optional
        What is taken instead of an estimate, as a training learned it.
    """

    latency: str | None = None
    size: str | None = None
    bops: str | None = None
    choices: Sequence[BitChoice] = DEFAULT_CHOICES
    pinned: Mapping[str, BitChoice] = field(default_factory=dict)
    pin_ends: bool = True
    sensitivity: str = "hessian"
    given: Sensitivity | None = None

    @property
    def budgets(self) -> dict[str, str]:
        """The budgets given, by quantity."""
        named = {"latency": self.latency, "size": self.size, "bops": self.bops}
        return {name: text for name, text in named.items() if text is not None}

    @property
    def measured(self) -> tuple[BitChoice, ...]:
        """All choices that some layer may take."""
        return tuple(dict.fromkeys([W8A8, *self.choices, *self.pinned.values()]))

    def settings(self) -> dict[str, Any]:
        """Return plain JSON values that tell wishes apart."""
        return {
            "budgets": self.budgets,
            "choices": sorted({str(choice) for choice in (W8A8, *self.choices)}),
            "pinned": {name: str(choice) for name, choice in sorted(self.pinned.items())},
            "pin_ends": self.pin_ends,
            "sensitivity": self.sensitivity,
            **({"given": self.given.digest()} if self.given else {}),
        }
