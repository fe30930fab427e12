"""Equation (3): how much the loss grows where one tensor alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tvmquant.sensitivity.estimator import Estimator, Output, Terms
from tvmquant.sensitivity.quantizers import Quantizer


class Growth:
    """The growth that every format of every tensor causes, added up over batches.

    Parameters
    ----------
    estimator : Estimator
        Whose terms are filled in.
    measures : callable (name of a format) -> bool, optional
        Which formats are measured; all by default.
    """

    def __init__(
        self, estimator: Estimator, measures: Callable[[str], bool] = lambda _name: True
    ) -> None:
        self.estimator = estimator
        self.measures = measures
        self.weight: Terms = {}
        self.activation: Terms = {}

    def add(self, x: tuple[Tensor, ...], reference: Sequence[Output]) -> None:
        """Measure a batch.

        Parameters
        ----------
        x : tuple of tensor
            Inputs.
        reference : sequence of Output
            Of the float network.
        """
        quantizers = self.estimator.q
        edges = quantizers.twin.weight_edges
        for layer in quantizers.layers:
            for name, rounded in quantizers.weights[layer.id].items():
                if self.measures(name):
                    grown = self._growth(x, reference, edges[layer.id], _always(rounded))
                    _add(self.weight, layer.id, name, grown)
        for edge, by_name in quantizers.activations.items():
            for name, quantize in by_name.items():
                if self.measures(name):
                    grown = self._growth(x, reference, edge, quantize)
                    _add(self.activation, edge, name, grown)

    def write(self, items: int, factor: float = 1.0) -> None:
        """Give the terms their means over so many items, times a factor; none is below 0."""
        for found, terms in (
            (self.weight, self.estimator.weight),
            (self.activation, self.estimator.activation),
        ):
            for owner, by_name in found.items():
                means = {name: max(factor * v / items, 0.0) for name, v in by_name.items()}
                terms[owner] = {**terms[owner], **means}

    def _growth(
        self,
        x: tuple[Tensor, ...],
        reference: Sequence[Output],
        edge: str,
        quantize: Quantizer,
    ) -> float:
        """Return the growth of the loss, summed over the items of a batch."""
        twin = self.estimator.q.twin
        twin.transform = lambda name, tensor: quantize(tensor) if name == edge else tensor
        try:
            with torch.no_grad():
                result = twin(*x)
        finally:
            twin.transform = None
        growth = 0.0
        for before, after in zip(reference, self.estimator.compare(result, None), strict=True):
            # In float64: the growth is a small difference of two losses.
            targets = before.targets.double()
            grown = before.loss.value(after.z.double(), targets)
            growth += float(grown - before.loss.value(before.z.detach().double(), targets))
        return growth * len(x[0])


def _always(value: Tensor) -> Quantizer:
    return lambda _tensor: value


def _add(terms: Terms, owner: str, name: str, value: float) -> None:
    by_name = terms.setdefault(owner, {})
    by_name[name] = by_name.get(name, 0.0) + value
