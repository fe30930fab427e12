"""Bit widths that a training is given."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tvmquant.allocation import Plan
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import AllocationError
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.training.recipe import Recipe

DEFAULT: Final = "w4a4"


def given_choices(
    graph: Graph, recipe: Recipe, choice: str | None = None, plan: Path | None = None
) -> dict[str, BitChoice]:
    """Return the choice of every layer; of none, where the recipe says the widths.

    Parameters
    ----------
    graph : Graph
        Level L0.
    recipe : Recipe
    choice : str, optional
        Of all layers but the ends; default: `DEFAULT`.
    plan : Path, optional
        ``plan.json``.

    Raises
    ------
    QuantizationError, DataError, AllocationError
        When both are given, there is no such choice, or the plan cannot be read or is of another
        model.
    """
    layers = quantizable_layers(graph)
    if plan is not None:
        if choice is not None:
            raise AllocationError("--plan already says the bit widths; leave out --choice")
        found = Plan.load(plan)
        found.check(layers, graph.fingerprint())
        return found.choices
    if choice is None and recipe.adaptive is not None:
        return {}
    return uniform_choices(layers, BitChoice.parse(choice or DEFAULT))
