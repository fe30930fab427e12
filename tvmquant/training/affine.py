"""Outputs that go from the float number to the quantized one while training.

Of a quantizer ``Q``, what goes on is

    (1 - k) x + k Q(x),    k = min(done / until, 1),

``done`` being the share of the steps that is done. Gradients are those of this sum: early on they
are those of the float network.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tvmquant.training.method import Batch, Method


class AffineCombination(Method):
    """Let ``k`` rise in every step (`method_sections.Affine`)."""

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the one pass of a step, its outputs combined as far as the step is."""
        how = self.recipe.affine
        assert how is not None
        for quantizer in self.quantizers:
            combined = how.activations if quantizer.per_item else how.weights
            quantizer.blend = min(batch.done / how.until, 1.0) if combined else 1.0
        yield from super().losses(batch)
