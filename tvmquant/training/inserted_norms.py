"""Batch normalizations for graphs that were exported with theirs folded."""

from __future__ import annotations

import torch
import tvm
from torch import Tensor

from tvmquant.data import Dataset
from tvmquant.errors import TrainingError
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers
from tvmquant.levels import canonical
from tvmquant.passes.insert_batch_norm import InsertBatchNorm, layers_without_batch_norm
from tvmquant.passes.region_operators import output_axis
from tvmquant.progress import Progress
from tvmquant.twin import Twin
from tvmquant.twin.operators import make_function


def with_batch_norms(graph: Graph, data: Dataset, progress: Progress | None = None) -> Graph:
    """Return a float graph with a normalization behind every layer but the last.

    Parameters
    ----------
    graph : Graph
        Level L0.
    data : Dataset
        Of a few items: the first statistics are those of the layers' results for them.
    progress : callable, optional

    Raises
    ------
    TrainingError
        When every layer has one.
    """
    base = canonical(graph, fold_batch_norm=False)
    last = {layer.id for layer in quantizable_layers(graph) if layer.position == "last"}
    calls = {
        name: call
        for name, call in layers_without_batch_norm(base.main).items()
        if name not in last
    }
    if not calls:
        raise TrainingError(
            "insert_batch_norm: every layer but the last has a normalization; set it to false"
        )
    computes = {name: make_function(call) for name, call in calls.items()}
    twin = Twin(base.module)
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def observe(layer: str, x: Tensor) -> None:
        if layer not in calls:
            return
        y = computes[layer](x, twin.weights[layer]).movedim(output_axis(calls[layer]), -1).double()
        rows = y.reshape(-1, y.shape[-1])
        sums[layer] = rows.sum(0) + sums.get(layer, 0.0)
        squares[layer] = rows.square().sum(0) + squares.get(layer, 0.0)
        counts[layer] = counts.get(layer, 0) + len(rows)

    twin.observe_input = observe
    done = 0
    with torch.no_grad():
        for batch, _ in data:
            assert not isinstance(batch, tuple)
            twin(torch.from_numpy(batch))
            done += len(batch)
            if progress is not None:
                progress(done, None)
    statistics = {}
    for layer, count in counts.items():
        mean = sums[layer] / count
        variance = (squares[layer] / count - mean.square()).clamp_min(0.0)
        statistics[layer] = mean.numpy(), variance.numpy()
    inserting = tvm.transform.Sequential([InsertBatchNorm(statistics)])
    return base.with_module(inserting(base.module))
