"""Weights that are drawn to their levels, and set to them in the end (ProxQuant).

While training weights are float numbers. A step of gradient descent is followed by that of a
W-shaped regularizer, the distance to the nearest level ``q``:

    w <- q + sign(w - q) max(|w - q| - lr l, 0),

``l`` growing linearly with the epochs that are done. Beyond a share of the steps weights are their
levels and stay, and what is left is trained: normalizations, biases and steps of activations.

Reference: Bai et al. (2019), "ProxQuant: Quantized Neural Networks via Proximal Operators".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tvmquant.training.method import Batch, Method
from tvmquant.training.optimizer import share_of_rate

if TYPE_CHECKING:
    from tvmquant.training.loop import Training


# Steps that the schedule of a phase is read at.
RESOLUTION: Final = 10_000


class Proximal(Method):
    """Draw weights to their levels after every step (`method_sections.Proximal`)."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        twin = training.twin
        edges = {id(quantizer): edge for edge, quantizer in twin.quantizers.items()}
        weights = {edge: twin.weights[layer] for layer, edge in twin.weight_edges.items()}
        self.pairs = [
            (quantizer, weights[edges[id(quantizer)]])
            for quantizer in self.quantizers
            if not quantizer.per_item
        ]

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the one pass of a step, with float weights or with those of the end."""
        hard = self._is_hard(batch)
        for quantizer, weight in self.pairs:
            quantizer.blend = float(hard)
            if hard:  # from the second time on nothing changes
                with torch.no_grad():
                    weight.copy_(quantizer(weight))
        yield from super().losses(batch)

    def before_step(self, batch: Batch) -> None:
        """Leave weights that have become their levels out of the step."""
        if self._is_hard(batch):
            for quantizer, weight in self.pairs:
                weight.grad = quantizer.scale.grad = None

    def after_step(self, batch: Batch) -> None:
        """Draw weights to their levels."""
        super().after_step(batch)
        if self._is_hard(batch):
            return
        recipe = self.recipe
        assert recipe.proximal is not None
        rate = share_of_rate(recipe.schedule, RESOLUTION)(int(batch.done * RESOLUTION))
        by = recipe.optimizer.lr * rate * recipe.proximal.rate * batch.done * recipe.epochs
        with torch.no_grad():
            for quantizer, weight in self.pairs:
                weight.copy_(drawn(weight, quantizer(weight), by))

    def _is_hard(self, batch: Batch) -> bool:
        assert self.recipe.proximal is not None
        return batch.done >= self.recipe.proximal.hard


def drawn(weight: Tensor, level: Tensor, by: float) -> Tensor:
    """Return numbers nearer to their levels by so much, and no further than these."""
    distance = weight - level
    return level + distance.sign() * (distance.abs() - by).clamp_min(0.0)
