"""Run calibration data through the float network and choose the range of every edge."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import tvm
from torch import Tensor

from tvmquant import formats
from tvmquant.calibration.base import Observer
from tvmquant.calibration.calibration import Calibration, EdgeRange, model_fingerprint
from tvmquant.calibration.equalization import Equalizer
from tvmquant.calibration.observers import make_observer
from tvmquant.data import Dataset, arrays_of, filled_up, open_data
from tvmquant.errors import DataError
from tvmquant.formats import WIDTHS
from tvmquant.graph import Graph
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.passes.region_operators import input_axis
from tvmquant.passes.scale_factors import LAYERS
from tvmquant.progress import Progress
from tvmquant.twin import Edge, Twin

DEFAULT_METHOD = "mse"
# Narrower widths that ranges are chosen for as well.
NARROW_BITS = (1, *WIDTHS[:-1])
# 1.9 dB: what clipping has to gain in a tensor (`MSEObserver`). SQNR in dB of SqueezeNet, ResNet-20
# and an audio network with a gain of 0.2: 31.0, 34.4, 24.8; 0.35: 32.4, 34.5, 24.4; 0.5: 31.8,
# 34.5, 23.5; minmax: 31.8, 34.8, 23.3.
LEAST_GAIN = 0.35
# Of the network's results: clipping the largest logit is what changes the answer.
OUTPUT_METHOD = "minmax"


def calibrate(
    graph: Graph | tvm.IRModule,
    data: Any,
    *,
    method: str = DEFAULT_METHOD,
    limit: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    **options: Any,
) -> Calibration:
    """Choose the range of every activation of an annotated graph.

    Parameters
    ----------
    graph : Graph or tvm.IRModule
        Annotated (L1). Edges that already have a scale keep it.
    data : Dataset, or what `open_data` reads without a recipe
        The network's inputs; labels are not used. A network of a fixed batch runs on chunks of it;
        what fills up the last one is not observed, unless the network mixes the items of a batch.
    method : {"mse", "minmax", "moving_average", "percentile", "entropy"}
        Observer of the activations. The network's results are observed by minmax.
    limit : int, optional
        Use only the first so many items.
    batch_size : int
        Items per run of the network, where `data` is not a `Dataset` yet.
    progress : callable (done, total), optional
        Called after each batch with the number of items; total is None where it is not known.
    **options
        Of the observer, such as ``percentile=99.9``.

    Returns
    -------
    Calibration
        With the range of each edge by itself, also of those that meet in a concat.

    Raises
    ------
    DataError
        When the data are empty or do not fit the input, or an activation is NaN or infinite;
        names the edge.
    QuantizationError
        When the method or an option is unknown.
    UnsupportedModelError
        When an operator has no torch function.

    Notes
    -----
    Memory does not depend on the number of items: observers keep histograms, and an activation is
    dropped when it was observed and its last reader has run.
    """
    if isinstance(graph, tvm.IRModule):
        names = tuple(str(parameter.name) for parameter in graph["main"].params)
        graph = Graph(graph, "L1", "", names, ())
    module = graph.module
    twin = Twin(module)
    edges = [e for e in twin.edges if e.role != "weight" and not e.calibrated]
    observers = {edge.id: _observer(edge, method, options) for edge in edges}
    equalizer = Equalizer(module)
    watch, inputs = _Watch(observers, equalizer), _LayerInputs(module)
    real = _RealItems(graph.fixed_batch())

    def observe(edge_id: str, tensor: Tensor) -> None:
        watch(edge_id, real.of(tensor))

    def observe_input(layer: str, tensor: Tensor) -> None:
        inputs(layer, real.of(tensor))

    twin.observe, twin.observe_input = observe, observe_input
    dataset = _dataset(graph, data, limit, batch_size)
    count = _run(twin, dataset, real, progress)
    ranges = {name: o.range() for name, o in observers.items()}
    factors = equalizer.factors(ranges, inputs.powers())
    narrow = {
        bits: {name: o.range_for(bits) for name, o in observers.items()} for bits in NARROW_BITS
    }
    return Calibration(
        model=model_fingerprint(graph),
        data=dataset.fingerprint(),
        count=count,
        edges={
            edge.id: EdgeRange(
                lo=ranges[edge.id][0],
                hi=ranges[edge.id][1],
                method=observers[edge.id].method,
                samples=observers[edge.id].count,
                narrow={
                    bits: chosen[edge.id]
                    for bits, chosen in narrow.items()
                    if chosen[edge.id] != ranges[edge.id]
                },
                factors=factors.get(edge.id, []),
            )
            for edge in edges
        },
        input_means=inputs.means(),
        input_powers=inputs.powers(),
    )


class _RealItems:
    """How many items of a batch are real: the rest fills up a network's fixed batch."""

    def __init__(self, batch: int | None) -> None:
        self.batch = batch
        self.count = 0

    def of(self, tensor: Tensor) -> Tensor:
        """Return the real items of a tensor that holds them along its first axis."""
        if self.batch is None or tensor.ndim == 0 or tensor.shape[0] % self.batch:
            return tensor
        return tensor[: tensor.shape[0] // self.batch * self.count]


class _Watch:
    """Hand the tensors of the observed edges to their observers."""

    def __init__(self, observers: Mapping[str, Observer], equalizer: Equalizer) -> None:
        self.observers = observers
        self.equalizer = equalizer

    def __call__(self, edge_id: str, tensor: Tensor) -> None:
        observer = self.observers.get(edge_id)
        if observer is None:
            return
        try:
            observer.update(tensor.numpy(force=True))
        except DataError as error:
            raise DataError(f"tensor {edge_id!r}: {error}") from error
        self.equalizer.observe(edge_id, tensor)


class _LayerInputs:
    """Average the channels of every layer's input, and their squares."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.axes = {
            span_name(value): input_axis(value)
            for _, value in bindings_of(module["main"])
            if qop.is_call(value, *LAYERS)
        }
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, layer: str, tensor: Tensor) -> None:
        others = [axis for axis in range(tensor.ndim) if axis != self.axes[layer]]
        total = tensor.sum(dim=others, dtype=torch.float64)
        squares = tensor.double().square().sum(dim=others)
        nothing = torch.zeros_like(total)
        self.sums[layer] = self.sums.get(layer, nothing) + total
        self.squares[layer] = self.squares.get(layer, nothing) + squares
        self.counts[layer] = self.counts.get(layer, 0) + tensor.numel() // len(total)

    def means(self) -> dict[str, list[float]]:
        """Return the mean of each channel, by layer."""
        return self._average(self.sums)

    def powers(self) -> dict[str, list[float]]:
        """Return the mean square of each channel, by layer."""
        return self._average(self.squares)

    def _average(self, sums: Mapping[str, Tensor]) -> dict[str, list[float]]:
        return {
            layer: [float(f"{mean:.6g}") for mean in (total / self.counts[layer]).tolist()]
            for layer, total in sums.items()
        }


def _observer(edge: Edge, method: str, options: Mapping[str, Any]) -> Observer:
    observer = make_observer(method, **options)
    if edge.role == "output":
        return make_observer(OUTPUT_METHOD)
    known = inspect.signature(type(observer)).parameters
    own = {"bits": formats.parse(edge.format).bits, "scheme": edge.scheme, "least_gain": LEAST_GAIN}
    fitting = {name: value for name, value in own.items() if name in known}
    return make_observer(method, **{**fitting, **options})


def _dataset(graph: Graph, data: Any, limit: int | None, batch_size: int) -> Dataset:
    dataset = (
        data
        if isinstance(data, Dataset)
        else open_data(data, inputs=graph.item_inputs(), batch_size=batch_size)
    )
    return dataset if limit is None else dataset.subset(limit=limit)


def _run(twin: Twin, dataset: Dataset, real: _RealItems, progress: Progress | None) -> int:
    """Run all batches and return the number of items."""
    total = len(dataset) if dataset.has_length else None
    done = 0
    if real.batch is not None:
        dataset = dataset.rebatched(real.batch)
    with torch.inference_mode():
        for batch, _labels in dataset:
            arrays = arrays_of(batch)
            count = len(arrays[0])
            if real.batch is not None:
                real.count = count
                arrays = filled_up(arrays, real.batch)
            twin(*(torch.from_numpy(array) for array in arrays))
            done += count
            if progress is not None:
                progress(done, total)
    if done == 0:
        raise DataError(f"{dataset.name}: no item to calibrate with; expected at least one")
    return done
