"""What all ways to estimate have in common: batches of data, the network's loss, the record."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvmquant.data import Dataset, arrays_of, filled_up
from tvmquant.errors import DataError, SensitivityError
from tvmquant.layers import Layer
from tvmquant.progress import Progress
from tvmquant.sensitivity.loss import Loss, choose_loss
from tvmquant.sensitivity.quantizers import Quantizers
from tvmquant.sensitivity.record import LayerSensitivity, Sensitivity

Terms = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """How to estimate; see `tvmquant.sensitivity.estimate_sensitivity`."""

    labels: bool
    loss: str
    tolerance: float
    max_probes: int
    batch_size: int
    seed: int
    fixed_batch: int | None = None


@dataclass(frozen=True)
class Output:
    """One output of the network for one batch.

    Parameters
    ----------
    z : tensor (N, C, P)
    targets : tensor (N, C, P), without gradient
    loss : Loss
    labelled : bool
        Whether the targets are labels.
    """

    z: Tensor
    targets: Tensor
    loss: Loss
    labelled: bool


class Estimator(ABC):
    """The terms of every weight and activation, collected over batches.

    Parameters
    ----------
    quantizers : Quantizers
    dataset : Dataset
    reiterable : bool
        Whether the data can be read more than once.
    settings : Settings
    progress : callable (items done, total), optional
    """

    def __init__(
        self,
        quantizers: Quantizers,
        dataset: Dataset,
        reiterable: bool,
        settings: Settings,
        progress: Progress | None,
    ) -> None:
        self.q = quantizers
        self.dataset = dataset
        self.reiterable = reiterable
        self.settings = settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.progress = progress or (lambda _done, _total: None)
        self.weight: Terms = {layer.id: {} for layer in quantizers.layers}
        self.activation: Terms = {edge: {} for edge in quantizers.activations}
        self.traces: dict[str, tuple[float, float]] = {}
        self.done = self.count = self.probes = 0
        self.passes = 1
        self.relative_error: float | None = None
        self.losses: list[Loss | None] = []
        for layer in quantizers.layers:
            self.require_finite(quantizers.twin.weights[layer.id], f"the weight of {layer.id!r}")

    @abstractmethod
    def run(self) -> None:
        """Fill in the terms."""

    def batches(
        self, size: int | None = None
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """Yield inputs and labels (where they are to be used) of at most ``size`` items.

        A network of a fixed batch gets that many, the last ones filled up with the last item.
        """
        fixed = self.settings.fixed_batch
        size = fixed or size or self.settings.batch_size
        seen = 0
        for items, labels in self.dataset:
            if self.settings.labels and labels is None:
                raise DataError(
                    f"{self.dataset.name} has no labels; leave out labels to use the float "
                    "network's own predictions"
                )
            arrays = arrays_of(items)
            for start in range(0, len(arrays[0]), size):
                chunk = tuple(array[start : start + size] for array in arrays)
                count = len(chunk[0])
                targets = labels[start : start + size] if labels is not None else None
                if fixed is not None:
                    chunk = filled_up(chunk, fixed)
                    targets = None if targets is None else filled_up((targets,), fixed)[0]
                x = tuple(torch.from_numpy(array) for array in chunk)
                y = None
                if self.settings.labels and targets is not None:
                    y = torch.from_numpy(targets)
                yield x, y
                seen += count
                self.done += count
                self.progress(self.done, self._total())
        self.count = seen

    def _total(self) -> int | None:
        return len(self.dataset) * self.passes if self.dataset.has_length else None

    def compare(self, result: Any, labels: Tensor | None) -> list[Output]:
        """Return the floating-point outputs of the network and their targets.

        The labels are those of the first; the others have the network's own answers as targets.

        Raises
        ------
        DataError
            When there is no such output, or the labels do not fit.
        """
        tensors = list(result) if isinstance(result, tuple) else [result]
        floating = [t.is_floating_point() and t.ndim > 0 for t in tensors]
        if not any(floating):
            raise DataError(
                "no output of the network holds real values; sensitivity needs scores, such as "
                "what goes into the argmax"
            )
        if not self.losses:
            self.losses = [
                choose_loss(self.settings.loss, end, tensor) if is_float else None
                for end, tensor, is_float in zip(self.q.ends, tensors, floating, strict=True)
            ]
        outputs: list[Output] = []
        for tensor, loss in zip(tensors, self.losses, strict=True):
            if loss is not None:
                z = loss.values(tensor)
                answer = None if outputs else labels
                targets = loss.targets(z, answer)
                outputs.append(Output(z, targets, loss, answer is not None))
        return outputs

    def check_outputs(self, x: tuple[Tensor, ...], outputs: Iterable[Output]) -> None:
        """Raise `SensitivityError` unless the outputs are finite; names where they are not."""
        if all(bool(output.z.isfinite().all()) for output in outputs):
            return
        bad: list[str] = []

        def observe(edge: str, tensor: Tensor) -> None:
            if not bad and not bool(tensor.isfinite().all()):
                bad.append(edge)

        self.q.twin.observe = observe
        try:
            with torch.no_grad():
                self.q.twin(*x)
        finally:
            self.q.twin.observe = None
        where = f"the tensor {bad[0]!r}" if bad else "an output"
        raise SensitivityError(
            f"{where} of the float model is NaN or infinite; check the model and the "
            "preprocessing of the data"
        )

    def require_finite(self, value: float | Tensor, what: str) -> None:
        """Raise `SensitivityError` unless a value is finite."""
        finite = math.isfinite(value) if isinstance(value, float) else bool(value.isfinite().all())
        if not finite:
            raise SensitivityError(
                f"{what} is NaN or infinite; check that the float model is finite on these data"
            )

    def weight_errors(self, layer: str) -> dict[str, Tensor]:
        """Return Q(W) - W by width."""
        original = self.q.twin.weights[layer].detach()
        return {name: rounded - original for name, rounded in self.q.weights[layer].items()}

    def _given(self, layer: Layer) -> list[str]:
        """Return the format of what the model gives a layer to read."""
        return list(dict.fromkeys(c.activation.name for c in self.q.choices[layer.id]))

    def result(self, method: str, model: str, data: str | None) -> Sensitivity:
        """Return the record.

        Raises
        ------
        SensitivityError
            When a term is NaN or infinite.
        """
        layers, perturbation = {}, {}
        for layer in self.q.layers:
            edges = [edge for edge in self.q.edges_of(layer) if edge in self.activation]
            names = self.activation[edges[0]] if edges else self._given(layer)
            shares = {
                name: math.fsum(self.activation[edge][name] for edge in edges)
                / self.q.readers[layer.edges[0]]
                for name in names
            }
            trace, error = self.traces.get(layer.id, (None, None))
            for kind, terms in (("weight", self.weight[layer.id]), ("activation", shares)):
                for name, value in terms.items():
                    self.require_finite(value, f"layer {layer.id!r}: its {kind} term of {name}")
            layers[layer.id] = LayerSensitivity(
                weight=self.weight[layer.id], activation=shares, trace=trace, standard_error=error
            )
            perturbation[layer.id] = {
                str(choice): self.weight[layer.id][choice.weight.name]
                + shares[choice.activation.name]
                for choice in self.q.choices[layer.id]
                if choice.activation.name in shares
            }
        limit = self.settings.tolerance
        return Sensitivity(
            method=method, model=model, data=data, count=self.count,
            labelled=self.settings.labels, losses=[loss.name for loss in self.losses if loss],
            probes=self.probes, tolerance=limit, relative_error=self.relative_error,
            converged=self.relative_error is None or self.relative_error <= limit,
            layers=layers, perturbation=perturbation,
        )  # fmt: skip
