"""The levels that follow from a float graph alone: in canonical form, and annotated.

Each is computed once for a graph, whichever stage asks first.
"""

from __future__ import annotations

from tvmquant.errors import QuantizationError
from tvmquant.graph import Graph
from tvmquant.passes import pipeline


def canonical(graph: Graph, *, fold_batch_norm: bool = True) -> Graph:
    """Return a float graph (L0) in canonical form; see `pipeline.canonicalize`."""
    return graph.once(_canonical, fold_batch_norm)


def annotated(
    graph: Graph,
    activation_scheme: str = "asymmetric",
    *,
    fold_batch_norm: bool = True,
    calibrates: bool = True,
    dynamic: bool = False,
) -> Graph:
    """Return a float graph annotated (L1), uncalibrated.

    Parameters
    ----------
    graph : Graph
        Level L0.
    activation_scheme : str
        See `tvmquant.passes.annotate_quantization.AnnotateQuantization`.
    fold_batch_norm : bool
        Otherwise normalizations stay, as training needs them; the tensors that are quantized behind
        layers, and their names, are the same.
    calibrates : bool
        Whether tensors without a scale of the model's get one, by calibration.
    dynamic : bool
        Whether layers that would stay float round their input by its range, found at run time.

    Raises
    ------
    QuantizationError
        When the graph is of another level.
    """
    if graph.level != "L0":
        raise QuantizationError(f"expected a float graph (L0), found level {graph.level}")
    return graph.once(_annotated, activation_scheme, fold_batch_norm, calibrates, dynamic)


def _canonical(graph: Graph, fold_batch_norm: bool) -> Graph:
    return graph.with_module(pipeline.canonicalize(graph.module, fold_batch_norm=fold_batch_norm))


def _annotated(
    graph: Graph, activation_scheme: str, fold_batch_norm: bool, calibrates: bool, dynamic: bool
) -> Graph:
    module = canonical(graph, fold_batch_norm=fold_batch_norm).module
    annotated = pipeline.annotate(module, activation_scheme, calibrates=calibrates, dynamic=dynamic)
    return graph.with_module(annotated, "L1")
