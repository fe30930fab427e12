"""Equations (1) and (2): second derivatives of the loss, from random vectors."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from tvmquant import formats
from tvmquant.sensitivity.estimator import Estimator, Output, Terms
from tvmquant.sensitivity.growth import Growth
from tvmquant.sensitivity.loss import random_signs

_LOG = logging.getLogger(__name__)

# A weight of the layer of this name, or the activation of this edge; names may be alike.
Key = tuple[Literal["weight", "activation"], str]

# Probes of a batch for one forward computation; the standard error comes from how they differ.
PROBES: Final = 4
# Traces below this share of the greatest need not be known to the tolerance.
NEGLIGIBLE_TRACE: Final = 0.01


@dataclass
class Trace:
    """The running estimate of a trace, per item, from probes of batches."""

    weighted: float = 0.0
    variance: float = 0.0
    items: int = 0

    def add(self, samples: Sequence[float], items: int) -> None:
        """Add the probes of one batch; their differences give the variance of their mean."""
        mean = math.fsum(samples) / len(samples)
        square = math.fsum((sample - mean) ** 2 for sample in samples)
        self.weighted += items * mean
        self.variance += items**2 * square / (len(samples) * max(len(samples) - 1, 1))
        self.items += items

    @property
    def mean(self) -> float:
        """The estimate."""
        return self.weighted / self.items

    @property
    def error(self) -> float:
        """Its standard error, for these data."""
        return math.sqrt(self.variance) / self.items


class Curvature(Estimator):
    """Passes over the data, with fresh probes each, until every trace is known well enough.

    Attributes
    ----------
    growths : float
        Of the loss, that a term stands for.
    """

    growths: float

    def run(self) -> None:
        """Fill in the terms."""
        found: dict[Key, Trace] = {}
        # second derivatives say nothing of steps as wide as the tensor's range
        self.one_bit = Growth(self, lambda name: formats.parse(name).bits == 1)
        while True:
            for x, y in self.batches(self.pass_size()):
                self._add_batch(x, y, found)
            self.probes += self.probes_per_pass()
            if self.probes_per_pass() == 0:
                break
            self.relative_error = self._worst(found)
            _LOG.info(
                "%d probes of %d items: standard error of the traces %.1f %%",
                self.probes, self.count, 100.0 * self.relative_error,
            )  # fmt: skip
            enough = self.relative_error <= self.settings.tolerance
            last = self.probes + self.probes_per_pass() > self.settings.max_probes
            if enough or last or not self.reiterable:
                break
            self._expect(self.relative_error)
        self.passes = self.done // self.count
        self.progress(self.done, self._total())
        self.finish(found)
        self.one_bit.write(self.count, self.growths)

    def pass_size(self) -> int:
        """Return the items of a batch."""
        return self.settings.batch_size

    def probes_per_pass(self) -> int:
        """Return the probes of each batch in a pass; 0 where there is no chance involved."""
        return PROBES

    @abstractmethod
    def sample(
        self, outputs: Sequence[Output], tensors: Mapping[Key, Tensor], probes: int
    ) -> dict[Key, list[float]]:
        """Return estimates of each trace, per item, and collect what `finish` needs."""

    def begin(self, values: Mapping[str, Tensor]) -> None:
        """Take note of the activations of a batch in the first pass."""

    @abstractmethod
    def finish(self, found: Mapping[Key, Trace]) -> None:
        """Fill in the terms from all passes."""

    def _add_batch(self, x: tuple[Tensor, ...], y: Tensor | None, found: dict[Key, Trace]) -> None:
        result, values = self._forward(x)
        outputs = self.compare(result, y)
        self.check_outputs(x, outputs)
        if self.probes == 0:
            self.begin({edge: value.detach() for edge, value in values.items()})
            self.one_bit.add(x, outputs)
        weights = self.q.twin.weights
        tensors: dict[Key, Tensor] = {("weight", la.id): weights[la.id] for la in self.q.layers}
        tensors.update((("activation", edge), value) for edge, value in values.items())
        samples = self.sample(outputs, tensors, max(self.probes_per_pass(), 1))
        for key, estimates in samples.items():
            self.require_finite(math.fsum(estimates), f"the Hessian of the {key[0]} {key[1]!r}")
            found.setdefault(key, Trace()).add(estimates, len(x[0]))

    def _forward(self, x: tuple[Tensor, ...]) -> tuple[Any, dict[str, Tensor]]:
        """Return the result and the activation of every edge, to differentiate with respect to."""
        values: dict[str, Tensor] = {}

        def transform(edge: str, tensor: Tensor) -> Tensor:
            if edge not in self.activation:
                return tensor
            # A view of its own, since two edges may be of one tensor.
            shown = tensor.view_as(tensor) if tensor.requires_grad else tensor.detach()
            values[edge] = shown if shown.requires_grad else shown.requires_grad_()
            return values[edge]

        self.q.twin.transform = transform
        try:
            return self.q.twin(*x), values
        finally:
            self.q.twin.transform = None

    def _worst(self, found: Mapping[Key, Trace]) -> float:
        """Return the greatest relative standard error."""
        worst = 0.0
        for kind in ("weight", "activation"):
            traces = [trace for key, trace in found.items() if key[0] == kind]
            greatest = max(abs(trace.mean) for trace in traces)
            for trace in traces:
                if trace.error > 0.0:
                    size = max(abs(trace.mean), NEGLIGIBLE_TRACE * greatest)
                    worst = max(worst, trace.error / size if size else math.inf)
        return worst

    def _expect(self, error: float) -> None:
        """Foretell the number of passes, for the progress."""
        done, most = self.done // self.count, self.settings.max_probes // PROBES
        need = done * (error / self.settings.tolerance) ** 2
        self.passes = most if need >= most else max(math.ceil(need), done + 1)


class Hessian(Curvature):
    """Equation (1)."""

    growths = 2.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.errors: Terms = {edge: {} for edge in self.activation}
        self.sizes: dict[str, int] = {}
        self.has_residual = self.settings.labels and not self.q.piecewise_linear

    def begin(self, values: Mapping[str, Tensor]) -> None:
        """Add up the squared errors of activations."""
        for edge, value in values.items():
            self.sizes[edge] = value[0].numel()
            for name, quantize in self.q.activations[edge].items():
                error = float((quantize(value) - value).square().sum(dtype=torch.float64))
                self.errors[edge][name] = self.errors[edge].get(name, 0.0) + error

    def sample(
        self, outputs: Sequence[Output], tensors: Mapping[Key, Tensor], probes: int
    ) -> dict[Key, list[float]]:
        """Return estimates of the trace of both parts of the Hessian."""
        items = len(outputs[0].z)
        samples: dict[Key, list[float]] = {key: [] for key in tensors}
        for _ in range(probes):
            gradients = pull_back(outputs, tensors, self.generator)
            for key, gradient in gradients.items():
                samples[key].append(float(gradient.square().sum(dtype=torch.float64)) / items)
        if self.has_residual:
            for key, residuals in self._residuals(outputs, tensors, probes).items():
                samples[key] = [a + b for a, b in zip(samples[key], residuals, strict=True)]
        return samples

    def _residuals(
        self, outputs: Sequence[Output], tensors: Mapping[Key, Tensor], probes: int
    ) -> dict[Key, list[float]]:
        """Return v'Rv of each tensor alone, R the Hessian of ``slope' z`` (equation 4)."""
        products = [(out.loss.slope(out.z, out.targets) * out.z).sum() for out in outputs]
        total = torch.stack(products).sum() / len(outputs[0].z)
        gradients = torch.autograd.grad(
            total, list(tensors.values()), create_graph=True, allow_unused=True
        )
        residuals: dict[Key, list[float]] = {key: [0.0] * probes for key in tensors}
        for (key, tensor), gradient in zip(tensors.items(), gradients, strict=True):
            if gradient is None or not gradient.requires_grad:
                continue
            for index in range(probes):
                probe = random_signs(tensor, self.generator)
                (product,) = torch.autograd.grad(
                    gradient, tensor, probe, retain_graph=True, allow_unused=True
                )
                if product is not None:
                    residuals[key][index] = float((probe * product).sum(dtype=torch.float64))
        return residuals

    def finish(self, found: Mapping[Key, Trace]) -> None:
        """Multiply mean curvatures and squared errors."""
        for layer in self.q.layers:
            trace = found["weight", layer.id]
            self.traces[layer.id] = trace.mean, trace.error
            curvature = max(trace.mean, 0.0) / self.q.twin.weights[layer.id].numel()
            self.weight[layer.id] = {
                name: curvature * float(delta.square().sum(dtype=torch.float64))
                for name, delta in self.weight_errors(layer.id).items()
            }
        for edge, by_width in self.errors.items():
            curvature = max(found["activation", edge].mean, 0.0) / self.sizes[edge]
            self.activation[edge] = {
                name: curvature * total / self.count for name, total in by_width.items()
            }


class Fisher(Curvature):
    """Equation (2)."""

    growths = 1.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        weights = self.q.twin.weights
        self.squares = {la.id: torch.zeros_like(weights[la.id]) for la in self.q.layers}
        self.sums: Terms = {
            edge: dict.fromkeys(self.q.activations[edge], 0.0) for edge in self.activation
        }

    def pass_size(self) -> int:
        """Return 1 with labels: then the gradients of different items do not cancel."""
        return 1 if self.settings.labels else self.settings.batch_size

    def probes_per_pass(self) -> int:
        """Return 0 with labels: nothing is drawn."""
        return 0 if self.settings.labels else PROBES

    def sample(
        self, outputs: Sequence[Output], tensors: Mapping[Key, Tensor], probes: int
    ) -> dict[Key, list[float]]:
        """Return squared norms of gradients; adds up their elements' squares."""
        items = len(outputs[0].z)
        samples: dict[Key, list[float]] = {key: [] for key in tensors}
        deltas = {
            (edge, name): quantize(tensor.detach()) - tensor.detach()
            for (kind, edge), tensor in tensors.items()
            if kind == "activation"
            for name, quantize in self.q.activations[edge].items()
        }
        for _ in range(probes):
            gradients = pull_back(outputs, tensors, self.generator, slopes=self.settings.labels)
            for key, gradient in gradients.items():
                square = gradient.square()
                samples[key].append(float(square.sum(dtype=torch.float64)) / items)
                kind, name = key
                if kind == "weight":
                    self.squares[name] += square / probes
                    continue
                for width in self.sums[name]:
                    term = (square * deltas[name, width].square()).sum(dtype=torch.float64)
                    self.sums[name][width] += float(term) / probes
        return samples

    def finish(self, found: Mapping[Key, Trace]) -> None:
        """Weigh squared errors with the diagonal."""
        for layer in self.q.layers:
            trace = found["weight", layer.id]
            self.traces[layer.id] = trace.mean, trace.error
            fisher = self.squares[layer.id].detach() / self.done
            self.weight[layer.id] = {
                name: 0.5 * float((fisher * delta.square()).sum(dtype=torch.float64))
                for name, delta in self.weight_errors(layer.id).items()
            }
        for edge, by_width in self.sums.items():
            self.activation[edge] = {
                name: 0.5 * total / self.done for name, total in by_width.items()
            }


def pull_back(
    outputs: Sequence[Output],
    tensors: Mapping[Key, Tensor],
    generator: torch.Generator,
    *,
    slopes: bool = False,
) -> dict[Key, Tensor]:
    """Return ``J' u`` of each tensor, where u is a probe of each output's curvature.

    Of outputs with labels, u is the slope of the loss instead if ``slopes``. The graph is kept.
    What no output depends on has zeros.
    """
    vectors = [
        out.loss.slope(out.z, out.targets)
        if slopes and out.labelled
        else out.loss.probe(out.z, generator)
        for out in outputs
    ]
    gradients = torch.autograd.grad(
        [out.z for out in outputs], list(tensors.values()), vectors,
        retain_graph=True, allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    return dict(zip(tensors, gradients, strict=True))
