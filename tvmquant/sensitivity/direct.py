"""Equation (3), every tensor quantized alone, and the control that knows nothing of layers."""

from __future__ import annotations

import torch

from tvmquant import formats
from tvmquant.sensitivity.estimator import Estimator
from tvmquant.sensitivity.growth import Growth


class OutputGrowth(Estimator):
    """Equation (3)."""

    def run(self) -> None:
        """Fill in the terms."""
        growth = Growth(self)
        with torch.inference_mode():
            for x, y in self.batches():
                reference = self.compare(self.q.twin(*x), y)
                self.check_outputs(x, reference)
                growth.add(x, reference)
        growth.write(self.count)


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
