"""Evaluate a deployed library on data: accuracy, and how close it stays to the float model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.data import Dataset, InputSpec, arrays_of, filled_up, open_data
from tvmquant.errors import DataError
from tvmquant.output_quality import OutputMeter, OutputQuality
from tvmquant.progress import Progress

if TYPE_CHECKING:
    from tvmquant.graph import Graph

Array = NDArray[Any]
# From one array for each input to the results.
Network = Callable[..., Any]

# A top-5 accuracy is reported where chance alone does not reach it.
TOP5_CLASSES = 10


def top_k(logits: Array, labels: NDArray[np.integer[Any]], k: int) -> NDArray[np.bool_]:
    """Return for each item whether its label is among the k classes of the largest logits.

    Parameters
    ----------
    logits : array, shape (N, C)
    labels : integer array, shape (N,), 0 <= label < C
    k : int
        >= 1.

    Returns
    -------
    array of bool, shape (N,)

    Raises
    ------
    DataError
        When the shapes do not fit, or a label is not a class.

    Notes
    -----
    Equal logits, common after quantization, rank by their class index, as in ``argmax``: with k = 1
    the result is exactly ``logits.argmax(1) == labels``.

    Examples
    --------
    >>> top_k(np.array([[1, 3, 2], [5, 5, 0]]), np.array([2, 1]), 1).tolist()
    [False, False]
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DataError(
            f"logits of shape {logits.shape} with labels of shape {labels.shape}; expected (N, C) "
            "logits, one row for each of N labels"
        )
    classes = logits.shape[1]
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise DataError(
            f"label {wrong} is not a class of the model, which has {classes} (0..{classes - 1}); "
            "check that the data and their labels belong to this model"
        )
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(classes) < labels[:, None]
    rank = (logits > own).sum(axis=1) + ((logits == own) & before).sum(axis=1)
    return np.asarray(rank < k)


def agreement(first: Array, second: Array) -> NDArray[np.bool_]:
    """Return where two results have their largest value in the same class.

    Parameters
    ----------
    first, second : arrays of equal shape (N, C, ...)
        Such as logits (N, C), or class maps (N, C, H, W).

    Returns
    -------
    array of bool, shape (N, ...)

    Raises
    ------
    DataError
        When the shapes differ or there is no class axis.
    """
    if first.shape != second.shape or first.ndim < 2:
        raise DataError(
            f"results of shapes {first.shape} and {second.shape}; expected equal shapes (N, C, ...)"
        )
    return np.asarray(first.argmax(axis=1) == second.argmax(axis=1))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. Accuracies and agreement are in percent, None where not measured.

    Attributes
    ----------
    count : int
        Items evaluated.
    top1, top5 : float, optional
        Of the deployed library, where the data have labels; top5 from 10 classes on.
    reference_top1, reference_top5 : float, optional
        Of the float model.
    agreement : float, optional
        Items (for class maps: positions) whose largest output is the float model's; None as well
        where the output of an item is one number.
    sqnr_db : float, optional
        Of the library's first output against the float model's, over all items.
    outputs : tuple of OutputQuality
        The same of every output, and of every part of one that joins several; empty without a float
        model.
    """

    count: int
    top1: float | None = None
    top5: float | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    outputs: tuple[OutputQuality, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a mapping that is valid JSON: a ratio that is infinite is None."""
        fields: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        fields["outputs"] = [output.to_dict() for output in self.outputs]
        if self.sqnr_db is not None and not math.isfinite(self.sqnr_db):
            fields["sqnr_db"] = None
        return fields


def evaluate(
    model: Network,
    data: Any,
    *,
    reference: Any = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a deployed library, and the float model beside it, over a data set.

    Parameters
    ----------
    model : Model or callable
        What `tvmquant.load` returns; or any function from a batch of each input to its results. A
        model of a fixed batch is fed in chunks of it, the last one filled up.
    data : Dataset, or what `open_data` reads without a recipe
    reference : Graph or callable, optional
        The float model: a graph as `tvmquant.load_onnx` returns it, which runs in torch, or any
        function from a batch to its results.
    progress : callable (done, total), optional
        Called after each batch with the number of items; total is None where it is not known.

    Returns
    -------
    Evaluation

    Raises
    ------
    DataError
        When the data are empty, do not fit the model, or have labels that are no class of it; or
        when a result holds NaN.

    Notes
    -----
    Of several outputs the first one is compared with labels. Nothing is kept between batches.
    """
    dataset = data if isinstance(data, Dataset) else open_data(data, inputs=item_inputs(model))
    network = _in_chunks(model)
    twin = None if reference is None else _reference(reference)
    tally = _Tally(_meter(model, reference))
    total = len(dataset) if dataset.has_length else None
    for batch, labels in dataset:
        outputs = _outputs(network, batch)
        tally.add(outputs, None if twin is None else _outputs(twin, batch), labels)
        if progress is not None:
            progress(tally.count, total)
    return tally.evaluation()


def compare_outputs(
    model: Network, data: Dataset, graph: Graph, progress: Progress | None = None
) -> tuple[int, tuple[OutputQuality, ...]]:
    """Run a deployed library and the float model over a data set, whatever their outputs are.

    Parameters
    ----------
    model, progress
        As of `evaluate`.
    data : Dataset
    graph : Graph
        The float model.

    Returns
    -------
    int
        Number of items.
    tuple of OutputQuality
        One for each output.

    Raises
    ------
    DataError
        When the data are empty or do not fit the model.
    UnsupportedModelError
        When an operator has no torch function.
    """
    network, twin, meter = _in_chunks(model), float_network(graph), _meter(model, graph)
    total = len(data) if data.has_length else None
    count = 0
    for batch, _labels in data:
        arrays = arrays_of(batch)
        items = len(arrays[0])
        references, results = (
            [_by_item(each, items) for each in _as_tuple(run(*arrays))] for run in (twin, network)
        )
        meter.add(references, results)
        count += items
        if progress is not None:
            progress(count, total)
    return count, meter.qualities()


def float_network(graph: Graph) -> Network:
    """Return a float (L0) graph as a function from a batch of each input to its results, in torch.

    Raises
    ------
    UnsupportedModelError
        When an operator has no torch function.
    """
    import torch

    from tvmquant.twin import Twin

    twin = Twin(graph.module)

    def run(*arrays: Array) -> Any:
        with torch.inference_mode():
            result = twin(*(torch.from_numpy(array) for array in arrays))
        results = result if isinstance(result, tuple) else (result,)
        return tuple(tensor.numpy() for tensor in results)

    batch = graph.fixed_batch()
    return run if batch is None else _Chunked(run, batch)


def _reference(reference: Any) -> Network:
    return float_network(reference) if hasattr(reference, "module") else _in_chunks(reference)


def _meter(model: Any, reference: Any) -> OutputMeter:
    """Return what compares outputs, with their names and parts where they are known."""
    if hasattr(reference, "module"):
        from tvmquant.output_blocks import find_blocks

        return OutputMeter(reference.output_names, find_blocks(reference))
    outputs = getattr(model, "outputs", None) or ()
    return OutputMeter(tuple(output.name for output in outputs))


def item_inputs(model: Any) -> tuple[InputSpec, ...] | None:
    """Return what each input of a loaded library takes of one item; None of another function."""
    inputs = getattr(model, "inputs", None)
    if inputs is None:
        return None
    return tuple(InputSpec(info.name, tuple(info.shape[1:]), info.dtype) for info in inputs)


def _in_chunks(model: Network) -> Network:
    inputs = getattr(model, "inputs", None)
    return model if inputs is None else _Chunked(model, int(inputs[0].shape[0]))


class _Chunked:
    """Feed a network of a fixed batch; the last chunk is filled up by repeating its last item."""

    def __init__(self, network: Network, batch: int) -> None:
        self._network = network
        self._batch = batch

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        chunks = [
            self._results([array[start : start + self._batch] for array in arrays])
            for start in range(0, len(arrays[0]), self._batch)
        ]
        return tuple(np.concatenate(results) for results in zip(*chunks, strict=True))

    def _results(self, chunk: Sequence[Array]) -> list[Array]:
        """Return the results of the real items of a chunk, which lie along the first axis."""
        count = len(chunk[0])
        results = _as_tuple(self._network(*filled_up(chunk, self._batch)))
        return [_by_item(result, self._batch)[:count] for result in results]


def _by_item(result: Array, items: int) -> Array:
    """Return a result with its items in front, which a network may have joined with another axis.

    What does not divide into items is the result of all of them.
    """
    if result.shape[:1] == (items,):
        return result
    if result.ndim and len(result) % items == 0:
        return result.reshape(items, -1, *result.shape[1:])
    return result[None]


def _as_tuple(result: Any) -> tuple[Array, ...]:
    results = result if isinstance(result, (tuple, list)) else (result,)
    return tuple(np.asarray(each) for each in results)


def _outputs(network: Network, batch: Any) -> tuple[Array, ...]:
    """Return the outputs, the first one as (N, C, ...) without trailing extents of 1."""
    arrays = arrays_of(batch)
    output, *others = (_by_item(each, len(arrays[0])) for each in _as_tuple(network(*arrays)))
    if not output.ndim or len(output) != len(arrays[0]):
        raise DataError(
            f"a batch of {len(arrays[0])} items gave a first output of shape {output.shape}; "
            "expected one row per item"
        )
    for index, each in enumerate((output, *others)):
        if each.dtype.kind == "f" and np.isnan(each).any():
            which = "first output" if index == 0 else f"output {index}"
            raise DataError(f"the model's {which} holds NaN; check the model on these data")
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return output, *others


class _Tally:
    """Running sums over batches."""

    def __init__(self, meter: OutputMeter) -> None:
        self.count = 0
        self._meter = meter
        self._labelled = False
        self._has_reference = False
        self._classes = 0
        self._hits = {"top1": 0, "top5": 0, "reference_top1": 0, "reference_top5": 0}
        self._compared = 0
        self._agreed = 0

    def add(
        self,
        outputs: Sequence[Array],
        references: Sequence[Array] | None,
        labels: Array | None,
    ) -> None:
        output, reference = outputs[0], None if references is None else references[0]
        self.count += len(output)
        if labels is not None:
            self._labelled = True
            self._classes = output.shape[-1]
            self._count_hits("", output, labels)
            if reference is not None:
                self._count_hits("reference_", reference, labels)
        if references is not None and reference is not None:
            self._has_reference = True
            self._meter.add(references, outputs)
            if output.ndim > 1:
                same = agreement(reference, output)
                self._compared += same.size
                self._agreed += int(same.sum())

    def evaluation(self) -> Evaluation:
        measured: dict[str, Any] = {}
        for field, hits in self._hits.items():
            known = self._labelled and (self._has_reference or "reference" not in field)
            if known and (field.endswith("top1") or self._classes >= TOP5_CLASSES):
                measured[field] = 100.0 * hits / self.count
        if self._compared:
            measured["agreement"] = 100.0 * self._agreed / self._compared
        if self._has_reference:
            measured["outputs"] = self._meter.qualities()
            measured["sqnr_db"] = measured["outputs"][0].sqnr_db
        return Evaluation(self.count, **measured)

    def _count_hits(self, prefix: str, logits: Array, labels: Array) -> None:
        self._hits[f"{prefix}top1"] += int(top_k(logits, labels, 1).sum())
        self._hits[f"{prefix}top5"] += int(top_k(logits, labels, 5).sum())
