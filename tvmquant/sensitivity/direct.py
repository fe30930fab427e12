"""Equation (3), every tensor quantized alone, and the control that knows nothing of layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tvmquant import formats
from tvmquant.sensitivity.estimator import Estimator, Output
from tvmquant.sensitivity.quantizers import Quantizer


class OutputGrowth(Estimator):
    """Equation (3)."""

    def run(self) -> None:
        """Fill in the terms."""
        twin = self.q.twin
        edges = twin.weight_edges
        with torch.inference_mode():
            for x, y in self.batches():
                reference = self.compare(twin(*x), y)
                self.check_outputs(x, reference)
                for layer in self.q.layers:
                    terms = self.weight[layer.id]
                    for name, rounded in self.q.weights[layer.id].items():
                        growth = self._growth(x, reference, edges[layer.id], _always(rounded))
                        terms[name] = terms.get(name, 0.0) + growth
                for edge, quantizers in self.q.activations.items():
                    terms = self.activation[edge]
                    for name, quantize in quantizers.items():
                        growth = self._growth(x, reference, edge, quantize)
                        terms[name] = terms.get(name, 0.0) + growth
        for terms in (*self.weight.values(), *self.activation.values()):
            for name, total in terms.items():
                terms[name] = max(total / self.count, 0.0)

    def _growth(
        self,
        x: tuple[Tensor, ...],
        reference: Sequence[Output],
        edge: str,
        quantize: Quantizer,
    ) -> float:
        """Return the growth of the loss, summed over the items of a batch."""
        self.q.twin.transform = lambda name, tensor: quantize(tensor) if name == edge else tensor
        try:
            result = self.q.twin(*x)
        finally:
            self.q.twin.transform = None
        growth = 0.0
        for before, after in zip(reference, self.compare(result, None), strict=True):
            # In float64: the growth is a small difference of two losses.
            targets = before.targets.double()
            grown = before.loss.value(after.z.double(), targets)
            growth += float(grown - before.loss.value(before.z.double(), targets))
        return growth * len(x[0])


def _always(value: Tensor) -> Quantizer:
    return lambda _tensor: value


class Control(Estimator):
    """Seeded numbers that know how coarse a choice is, but nothing of the layer."""

    def run(self) -> None:
        """Fill in the terms."""
        for _batch in self.batches():
            pass
        for layer in self.q.layers:
            factor = float(torch.rand((), generator=self.generator))
            self.weight[layer.id] = {
                name: factor * 4.0 ** -formats.parse(name).bits for name in self.q.weights[layer.id]
            }
        for edge, quantizers in self.q.activations.items():
            factor = float(torch.rand((), generator=self.generator))
            self.activation[edge] = {
                name: factor * 4.0 ** -formats.parse(name).bits for name in quantizers
            }
