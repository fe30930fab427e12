"""The levels that follow from a float graph alone: in canonical form, and annotated.

Each is computed once for a graph, whichever stage asks first.
"""

from __future__ import annotations

from tvmquant.errors import QuantizationError
from tvmquant.graph import Graph
from tvmquant.passes import pipeline


def canonical(graph: Graph) -> Graph:
    """Return a float graph (L0) in canonical form, batch normalization folded; see `pipeline`."""
    return graph.once(_canonical)


def annotated(graph: Graph, activation_scheme: str = "asymmetric") -> Graph:
    """Return a float graph annotated (L1), uncalibrated.

    Parameters
    ----------
    graph : Graph
        Level L0.
    activation_scheme : str
        See `tvmquant.passes.annotate_quantization.AnnotateQuantization`.

    Raises
    ------
    QuantizationError
        When the graph is of another level.
    """
    if graph.level != "L0":
        raise QuantizationError(f"expected a float graph (L0), found level {graph.level}")
    return graph.once(_annotated, activation_scheme)


def _canonical(graph: Graph) -> Graph:
    return graph.with_module(pipeline.canonicalize(graph.module))


def _annotated(graph: Graph, activation_scheme: str) -> Graph:
    return graph.with_module(pipeline.annotate(canonical(graph).module, activation_scheme), "L1")
