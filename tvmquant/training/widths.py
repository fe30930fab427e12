"""Bit widths that a training is given."""

from __future__ import annotations

from pathlib import Path

from tvmquant.allocation import Plan
from tvmquant.bit_choice import BitChoice
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers, uniform_choices


def given_choices(graph: Graph, choice: str, plan: Path | None = None) -> dict[str, BitChoice]:
    """Return the choice of every layer.

    Parameters
    ----------
    graph : Graph
        Level L0.
    choice : str
        Of all layers but the ends, such as ``w4a4``; not read where there is a plan.
    plan : Path, optional
        ``plan.json``.

    Raises
    ------
    QuantizationError, DataError, AllocationError
        When there is no such choice, or the plan cannot be read or is of another model.
    """
    layers = quantizable_layers(graph)
    if plan is None:
        return uniform_choices(layers, BitChoice.parse(choice))
    found = Plan.load(plan)
    found.check(layers, graph.fingerprint())
    return found.choices
