"""Run calibration data through the float network and choose the range of every edge."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import Tensor
from tvm import tirx

from tvmquant.calibration.base import Observer
from tvmquant.calibration.calibration import Calibration, EdgeRange, model_fingerprint
from tvmquant.calibration.equalization import LAYERS, Equalizer, input_axis
from tvmquant.calibration.observers import make_observer
from tvmquant.data import Dataset, open_data
from tvmquant.errors import DataError, ModelError
from tvmquant.graph import Graph
from tvmquant.passes import quantized_ops as qop
from tvmquant.passes.rewriter import bindings_of, span_name
from tvmquant.twin import Edge, Twin

Progress = Callable[[int, int | None], None]

DEFAULT_METHOD = "mse"
# Narrower widths that ranges are chosen for as well.
NARROW_BITS = (4,)
# 1 dB: what clipping has to gain in a tensor (`MSEObserver`).
LEAST_GAIN = 0.2
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
        Annotated (L1), with one input. Edges that already have a scale keep it.
    data : Dataset, or what `open_data` reads without a recipe
        The network's inputs; labels are not used.
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

    A model of a fixed batch is run in batches of that size. The last is filled up by repeating its
    items, which count again: extremes stay what they are, histograms hardly move.
    """
    module = graph if isinstance(graph, tvm.IRModule) else graph.module
    twin = Twin(module)
    edges = [e for e in twin.edges if e.role != "weight" and not e.calibrated]
    observers = {edge.id: _observer(edge, method, options) for edge in edges}
    equalizer = Equalizer(module)
    twin.observe = _Watch(observers, equalizer)
    inputs = _LayerInputs(module)
    twin.observe_input = inputs
    dataset = _dataset(module, data, limit, batch_size)
    count = _run(twin, dataset, _fixed_batch(module), progress)
    ranges = {name: o.range() for name, o in observers.items()}
    factors = equalizer.factors(ranges, inputs.powers())
    narrow = {
        bits: {name: o.range_for(bits) for name, o in observers.items()} for bits in NARROW_BITS
    }
    return Calibration(
        model=model_fingerprint(module),
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
    # Beyond 8 bits the best threshold is the extreme anyway.
    own = {"bits": min(edge.bits, 8), "scheme": edge.scheme, "least_gain": LEAST_GAIN}
    fitting = {name: value for name, value in own.items() if name in known}
    return make_observer(method, **{**fitting, **options})


def _dataset(module: tvm.IRModule, data: Any, limit: int | None, batch_size: int) -> Dataset:
    parameters = module["main"].params
    if len(parameters) != 1:
        names = ", ".join(str(parameter.name) for parameter in parameters)
        raise ModelError(f"the model has {len(parameters)} inputs ({names}); expected one")
    if isinstance(data, Dataset):
        dataset = data
    else:
        # the rank of an item tells a list of batches from a list of items
        listed = isinstance(data, Iterable) and not isinstance(data, (np.ndarray, str))
        dims = list(parameters[0].ty.shape.values)[1:]
        shape = [int(dim.value) if isinstance(dim, tirx.IntImm) else None for dim in dims]
        dataset = open_data(data, input_shape=shape if listed else None, batch_size=batch_size)
    return dataset if limit is None else dataset.subset(limit=limit)


def _fixed_batch(module: tvm.IRModule) -> int | None:
    """Return the batch that the model fixes; None where any will do."""
    dims = list(module["main"].params[0].ty.shape.values)
    return int(dims[0].value) if dims and isinstance(dims[0], tirx.IntImm) else None


def _chunks(batch: NDArray[np.float32], fixed: int | None) -> Iterator[NDArray[np.float32]]:
    """Yield the items in batches of the fixed size; the last is filled up by repeating its own."""
    if fixed is None:
        yield batch
        return
    for start in range(0, len(batch), fixed):
        chunk = batch[start : start + fixed]
        yield np.take(chunk, np.arange(fixed), axis=0, mode="wrap")


def _run(twin: Twin, dataset: Dataset, fixed: int | None, progress: Progress | None) -> int:
    """Run all batches and return the number of items."""
    total = len(dataset) if dataset.has_length else None
    done = 0
    with torch.inference_mode():
        for batch, _labels in dataset:
            for chunk in _chunks(batch, fixed):
                twin(torch.from_numpy(chunk))
            done += len(batch)
            if progress is not None:
                progress(done, total)
    if done == 0:
        raise DataError(f"{dataset.name}: no item to calibrate with; expected at least one")
    return done
