"""Estimate the perturbation Omega of every layer under every bit choice, on the torch twin.

With ``L`` the mean loss over items (`tvmquant.sensitivity.loss`), ``dW = Q(W) - W`` of a layer's
weight, ``a`` the activation that it reads and ``da = Q(a) - a``, both of one item:

    hessian   Omega = tr(H_W) / |W| * ||dW||^2 + tr(H_a) / |a| * E ||da||^2                     (1)
    fisher    Omega = 1/2 sum_i F_i dW_i^2 + 1/2 E sum_i g_i^2 da_i^2,   F_i = E (dL/dW_i)^2    (2)
    output    Omega = L(only W quantized) - L + L(only a quantized) - L                         (3)
    random    Omega = a seeded number times the layer's relative error: a control

The trace is Hutchinson's: ``E_v v' H v`` with entries of v drawn from {-1, 1}. One Hessian-vector
product serves all weights and activations at once, since the parts of v that belong to different
tensors are independent, so that ``E v_i' (H v)_i = tr(H_ii)``. An activation's Hessian is that of
one item, averaged. Traces below zero (with labels the loss is not at its minimum) count as zero.
Probes are drawn until the standard error of every trace, over batches and probes, is below
``tolerance`` times the trace or 1 % of the greatest one, or `MAX_PRODUCTS` are done.

Without labels the float network's own predictions stand for them: the loss is then at its minimum,
its Hessian is the Fisher information, and traces vary less from batch to batch.

The term of an activation is shared out equally among the layers that read it, so that a sum over
layers counts it once. Memory does not depend on the number of items.

References: Dong et al., HAWQ-V2, 2020, eq. 7 and 9; Yao et al., HAWQ-V3, 2021; Theis et al., Faster
gaze prediction with dense networks and Fisher pruning, 2018, eq. 5 (the Fisher diagonal).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from tvmquant.bit_choice import DEFAULT_CHOICES, BitChoice
from tvmquant.data import Dataset, open_data
from tvmquant.errors import DataError, SensitivityError
from tvmquant.sensitivity.loss import (
    divergence,
    first_output,
    loss_of,
    sampled_targets,
    targets_of,
)
from tvmquant.sensitivity.methods import check_method
from tvmquant.sensitivity.quantizers import (
    Quantizers,
    activation_name,
    make_quantizers,
    weight_name,
)
from tvmquant.sensitivity.record import SCHEMA_VERSION, LayerSensitivity, Sensitivity

if TYPE_CHECKING:
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph

Progress = Callable[[int, "int | None"], None]
# (images, labels or None) of one batch
Batch = tuple[Tensor, "Tensor | None"]
Terms = dict[str, dict[str, float]]

BATCH_SIZE: Final = 8
# Hessian-vector products, after which the traces are taken as they are.
MAX_PRODUCTS: Final = 64
# Traces below this share of the greatest need not be known to the tolerance.
NEGLIGIBLE_TRACE: Final = 0.01


def estimate_sensitivity(
    graph: Graph,
    data: Any,
    calibration: Calibration,
    *,
    method: str = "hessian",
    choices: Sequence[BitChoice] = DEFAULT_CHOICES,
    labels: bool = False,
    tolerance: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Estimate what every layer's choices cost (see the module's description).

    Parameters
    ----------
    graph : Graph
        Level L0, of one input.
    data : Dataset, or what `open_data` reads without a recipe
    calibration : Calibration
        Of the graph.
    method : str
        One of `tvmquant.sensitivity.METHODS`.
    choices : sequence of BitChoice
        Besides w8a8.
    labels : bool
        Use the labels of the data, which must be those of the model's classes, where the output is
        (N, C).
    tolerance : float
        Relative standard error of the traces, > 0.
    limit : int, optional
        Use only the first so many items.
    seed : int
        Of probes and drawn labels.
    cache : path, optional
        Folder: an estimate of the same model, data and settings is read from there, or kept there.
    progress : callable (done, total), optional
        Receives the batches done.

    Raises
    ------
    SensitivityError
        When the method is unknown, or a result is NaN or infinite; names the layer.
    DataError
        When the data are empty or do not fit the model.
    """
    check_method(method)
    if not tolerance > 0.0:
        raise SensitivityError(f"tolerance = {tolerance}; expected more than 0")
    if data is None:
        raise DataError("sensitivity needs data: some of the images that calibrate the model")
    dataset = data if isinstance(data, Dataset) else open_data(data, batch_size=BATCH_SIZE)
    if limit is not None:
        dataset = dataset.subset(limit=limit)
    settings = [method, sorted(str(choice) for choice in choices), labels, tolerance, seed]
    path = _cache_path(cache, graph, dataset, calibration, settings)
    if path is not None and path.is_file():
        return Sensitivity.load(path)
    estimator = _ESTIMATORS[method](
        make_quantizers(graph, calibration, choices), dataset, labels, tolerance, seed, progress
    )
    estimator.run()
    found = estimator.result(method, graph.fingerprint())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return found


def _cache_path(
    folder: str | os.PathLike[str] | None,
    graph: Graph,
    dataset: Dataset,
    calibration: Calibration,
    settings: list[Any],
) -> Path | None:
    fingerprint = dataset.fingerprint()
    if folder is None or fingerprint is None:
        return None
    parts = [
        SCHEMA_VERSION, graph.fingerprint(), fingerprint, calibration.model_dump_json(), *settings,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return Path(folder, f"sensitivity-{key}.json")


class _Estimator:
    """The terms of every weight and activation, collected over batches."""

    def __init__(
        self,
        quantizers: Quantizers,
        dataset: Dataset,
        labels: bool,
        tolerance: float,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.q = quantizers
        self.dataset = dataset
        self.labelled = labels
        self.tolerance = tolerance
        self.generator = torch.Generator().manual_seed(seed)
        self.progress = progress or (lambda _done, _total: None)
        self.weight: Terms = {layer.id: {} for layer in quantizers.layers}
        self.activation: Terms = {edge: {} for edge in quantizers.activations}
        self.traces: dict[str, tuple[float, float]] = {}
        self.count = self.batches = self.probes = 0
        self.converged = True

    def run(self) -> None:
        """Fill in the terms."""
        raise NotImplementedError

    def batches_of(self, size: int = BATCH_SIZE, most: int = 0) -> Iterator[Batch]:
        """Yield batches of at most ``size`` items; ``most`` are expected, where not one pass."""
        length = -(-len(self.dataset) // size) if self.dataset.has_length else None
        total = max(length or 0, most) or None
        seen = 0
        for items, labels in self.dataset:
            for start in range(0, len(items), size):
                x = torch.from_numpy(items[start : start + size])
                if self.labelled and labels is None:
                    raise DataError(
                        f"{self.dataset.name} has no labels; leave out labels to use the float "
                        "model's own predictions"
                    )
                y = None
                if self.labelled and labels is not None:
                    y = torch.from_numpy(labels[start : start + size])
                seen += len(x)
                yield x, y
                self.batches += 1
                self.progress(self.batches, total)
        if seen == 0:
            raise DataError(f"{self.dataset.name}: no item; sensitivity needs at least one")
        self.count = max(self.count, seen)

    def weight_errors(self, layer: str) -> dict[str, Tensor]:
        """Return Q(W) - W by width."""
        original = self.q.twin.weights[layer].detach()
        return {name: rounded - original for name, rounded in self.q.weights[layer].items()}

    def result(self, method: str, model: str) -> Sensitivity:
        """Return the record.

        Raises
        ------
        SensitivityError
            When a term is NaN or infinite.
        """
        layers, perturbation = {}, {}
        for layer in self.q.layers:
            shares = {
                name: sum(self.activation[edge][name] for edge in self.q.edges_of(layer))
                / self.q.readers[layer.edges[0]]
                for name in self.activation[layer.edges[0]]
            }
            trace, error = self.traces.get(layer.id, (None, None))
            for kind, terms in (("weight", self.weight[layer.id]), ("activation", shares)):
                for name, value in terms.items():
                    _require_finite(value, f"layer {layer.id!r}: its {kind} term of {name}")
            layers[layer.id] = LayerSensitivity(
                weight=self.weight[layer.id], activation=shares, trace=trace, standard_error=error
            )
            perturbation[layer.id] = {
                str(choice): self.weight[layer.id][weight_name(choice)]
                + shares[activation_name(choice)]
                for choice in self.q.choices[layer.id]
                if activation_name(choice) in shares
            }
        return Sensitivity(
            method=method, model=model, data=self.dataset.fingerprint(), count=self.count,
            labelled=self.labelled, probes=self.probes, converged=self.converged, layers=layers,
            perturbation=perturbation,
        )  # fmt: skip


def _require_finite(value: float | Tensor, what: str) -> None:
    finite = math.isfinite(value) if isinstance(value, float) else bool(value.isfinite().all())
    if not finite:
        raise SensitivityError(
            f"{what} is NaN or infinite; check that the float model is finite on these data"
        )


class _Differentiating(_Estimator):
    """Base of the methods that need derivatives with respect to weights and activations."""

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the output, the activation of every edge, and zeros that are added to each."""
        values: dict[str, Tensor] = {}
        shifts: dict[str, Tensor] = {}

        def transform(edge: str, tensor: Tensor) -> Tensor:
            if edge not in self.activation:
                return tensor
            values[edge] = tensor.detach()
            shifts[edge] = torch.zeros_like(tensor, requires_grad=True)
            return tensor + shifts[edge]

        self.q.twin.transform = transform
        try:
            output = first_output(self.q.twin(x))
        finally:
            self.q.twin.transform = None
        return output, values, shifts

    def tensors(self, shifts: Mapping[str, Tensor]) -> tuple[list[str], list[Tensor]]:
        """Return names and tensors to differentiate with respect to: weights, then shifts."""
        weights = self.q.twin.weights
        names = [*weights, *shifts]
        return names, [*weights.values(), *shifts.values()]


class _Hessian(_Differentiating):
    """Equation (1)."""

    def run(self) -> None:
        weights = self.q.twin.weights
        sums: dict[str, list[float]] = {}
        errors: Terms = {edge: {} for edge in self.activation}
        sizes: dict[str, int] = {}
        self.converged = False
        while not self.converged and (self.probes < 2 or self.batches < MAX_PRODUCTS):
            for x, y in self.batches_of(most=MAX_PRODUCTS):
                samples, values = self._probe(x, y)
                for name, sample in samples.items():
                    sums.setdefault(name, []).append(sample)
                if self.probes == 0:
                    self._add_errors(errors, values, sizes)
            self.probes += 1
            traces = {name: _mean_and_error(samples) for name, samples in sums.items()}
            self.converged = self.probes > 1 and self._settled(traces)
        self.progress(self.batches, self.batches)
        for layer in self.q.layers:
            trace, error = traces[layer.id]
            self.traces[layer.id] = trace, error
            mean = max(trace, 0.0) / weights[layer.id].numel()
            self.weight[layer.id] = {
                name: mean * float(delta.square().sum())
                for name, delta in self.weight_errors(layer.id).items()
            }
        for edge, by_width in errors.items():
            mean = max(traces[edge][0], 0.0) / sizes[edge]
            self.activation[edge] = {
                name: mean * total / self.count for name, total in by_width.items()
            }

    def _probe(self, x: Tensor, y: Tensor | None) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return v' H v of every tensor for one draw of v, and the activations."""
        output, values, shifts = self.forward(x)
        loss = loss_of(output, targets_of(output, y))
        _require_finite(loss.detach(), "the loss of the float model")
        names, tensors = self.tensors(shifts)
        gradients = torch.autograd.grad(loss, tensors, create_graph=True)
        probes = [
            torch.randint(0, 2, t.shape, generator=self.generator).to(t.dtype).mul_(2).sub_(1)
            for t in tensors
        ]
        products = [(g * v).sum() for g, v in zip(gradients, probes, strict=True)]
        curvatures = torch.autograd.grad(torch.stack(products).sum(), tensors, allow_unused=True)
        samples = {}
        for name, probe, curvature in zip(names, probes, curvatures, strict=True):
            value = 0.0 if curvature is None else float((probe * curvature).sum())
            _require_finite(value, f"the Hessian of {name!r}")
            samples[name] = value
        return samples, values

    def _add_errors(
        self, errors: Terms, values: Mapping[str, Tensor], sizes: dict[str, int]
    ) -> None:
        for edge, value in values.items():
            sizes[edge] = value[0].numel()
            for name, quantize in self.q.activations[edge].items():
                error = float((quantize(value) - value).square().sum())
                errors[edge][name] = errors[edge].get(name, 0.0) + error

    def _settled(self, traces: Mapping[str, tuple[float, float]]) -> bool:
        for names in ([layer.id for layer in self.q.layers], list(self.activation)):
            greatest = max(abs(traces[name][0]) for name in names)
            for name in names:
                trace, error = traces[name]
                if error > self.tolerance * max(abs(trace), NEGLIGIBLE_TRACE * greatest):
                    return False
        return True


def _mean_and_error(samples: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error."""
    mean = math.fsum(samples) / len(samples)
    if len(samples) == 1:
        return mean, math.inf
    variance = math.fsum((s - mean) ** 2 for s in samples) / (len(samples) - 1)
    return mean, math.sqrt(variance / len(samples))


class _Fisher(_Differentiating):
    """Equation (2), item by item."""

    def run(self) -> None:
        weights = self.q.twin.weights
        squares = {layer: torch.zeros_like(weight) for layer, weight in weights.items()}
        sums: Terms = {edge: {} for edge in self.activation}
        for x, y in self.batches_of(size=1):
            output, values, shifts = self.forward(x)
            _require_finite(output.detach(), "the output of the float model")
            targets = sampled_targets(output, targets_of(output, y), self.generator)
            names, tensors = self.tensors(shifts)
            gradients = torch.autograd.grad(loss_of(output, targets), tensors)
            for name, gradient in zip(names, gradients, strict=True):
                _require_finite(gradient, f"the gradient of {name!r}")
                if name in squares:
                    squares[name] += gradient.square()
                    continue
                for width, quantize in self.q.activations[name].items():
                    delta = quantize(values[name]) - values[name]
                    term = 0.5 * float((gradient * delta).square().sum())
                    sums[name][width] = sums[name].get(width, 0.0) + term
        for layer in self.q.layers:
            fisher = squares[layer.id].detach() / self.count
            self.weight[layer.id] = {
                name: 0.5 * float((fisher * delta.square()).sum())
                for name, delta in self.weight_errors(layer.id).items()
            }
        for edge, by_width in sums.items():
            self.activation[edge] = {name: s / self.count for name, s in by_width.items()}


class _Output(_Estimator):
    """Equation (3): every tensor quantized alone."""

    def run(self) -> None:
        twin = self.q.twin
        edges = twin.weight_edges
        with torch.inference_mode():
            for x, y in self.batches_of():
                reference = first_output(twin(x))
                _require_finite(reference, "the output of the float model")
                targets = targets_of(reference, y)
                for layer in self.q.layers:
                    for name, rounded in self.q.weights[layer.id].items():
                        term = self._term(x, targets, reference, edges[layer.id],
                                          lambda _w, rounded=rounded: rounded)  # fmt: skip
                        _add(self.weight[layer.id], name, term)
                for edge, quantizers in self.q.activations.items():
                    for name, quantize in quantizers.items():
                        term = self._term(x, targets, reference, edge, quantize)
                        _add(self.activation[edge], name, term)
        for terms in (*self.weight.values(), *self.activation.values()):
            for name, total in terms.items():
                terms[name] = max(total / self.count, 0.0)

    def _term(
        self, x: Tensor, targets: Tensor, reference: Tensor, edge: str, quantize: Any
    ) -> float:
        """Return the growth of the loss, summed over the items of a batch."""
        self.q.twin.transform = lambda name, t: quantize(t) if name == edge else t
        try:
            output = first_output(self.q.twin(x))
        finally:
            self.q.twin.transform = None
        return float(divergence(output, targets, reference)) * len(x)


def _add(terms: dict[str, float], name: str, term: float) -> None:
    terms[name] = terms.get(name, 0.0) + term


class _Random(_Estimator):
    """A control that knows how coarse a choice is, but nothing of the layer."""

    def run(self) -> None:
        for _batch in self.batches_of():
            pass
        for layer in self.q.layers:
            factor = float(torch.rand((), generator=self.generator))
            self.weight[layer.id] = {
                name: factor * 4.0 ** -int(name[1:].partition("g")[0])
                for name in self.q.weights[layer.id]
            }
        for edge, quantizers in self.q.activations.items():
            factor = float(torch.rand((), generator=self.generator))
            self.activation[edge] = {name: factor * 4.0 ** -int(name[1:]) for name in quantizers}


_ESTIMATORS: Mapping[str, type[_Estimator]] = {
    "hessian": _Hessian,
    "fisher": _Fisher,
    "output": _Output,
    "random": _Random,
}
