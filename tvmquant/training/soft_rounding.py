"""Weights whose rounding is searched, and the error of what is computed with them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tvmquant.twin.quantizer_module import FakeQuantize

# Of h; the penalty's weight, and its exponent in the first and in the last step; the share of the
# steps before it begins.
STRETCH: Final = 1.2
OFFSET: Final = 0.1
PENALTY: Final = 0.01
FIRST_POWER: Final = 20.0
LAST_POWER: Final = 2.0
FREE: Final = 0.2
# Where h begins at most near its ends, beyond which it has no gradient.
MARGIN: Final = 0.01


class SoftWeight(torch.nn.Module):
    """A weight ``s (floor(w / s) + h(v))``, with ``h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)``.

    Parameters
    ----------
    quantizer : FakeQuantize
        Calibrated; its steps stay.
    weight : float32 tensor

    Attributes
    ----------
    v : float32 parameter like the weight
        Begins where the soft weight is the weight itself.
    hard : bool
        Whether h is taken as 0 or 1, whichever is nearer.
    """

    def __init__(self, quantizer: FakeQuantize, weight: Tensor) -> None:
        super().__init__()
        self.hard = False
        with torch.no_grad():
            self.scale = quantizer.steps_of(weight).detach()
            self.low, self.high = int(quantizer.qmin), int(quantizer.qmax)
            self.floor = torch.floor(weight / self.scale)
            start = (weight / self.scale - self.floor).clamp(MARGIN, 1.0 - MARGIN)
            v = -torch.log(STRETCH / (start + OFFSET) - 1.0)
        self.v = torch.nn.Parameter(v)

    def up(self) -> Tensor:
        """Return h."""
        found = (STRETCH * torch.sigmoid(self.v) - OFFSET).clamp(0.0, 1.0)
        return (found >= 0.5).to(found.dtype) if self.hard else found

    def integers(self) -> Tensor:
        """Return the number of steps of each weight."""
        return (self.floor + self.up()).clamp(self.low, self.high)

    def forward(self, _weight: Tensor) -> Tensor:
        """Return the weight."""
        return self.integers() * self.scale

    def penalty(self, done: float) -> Tensor:
        """Return what drives h to its ends, more and more.

        Parameters
        ----------
        done : float
            Share of the steps that are done, of those in which there is a penalty.
        """
        exponent = LAST_POWER + (FIRST_POWER - LAST_POWER) * (1.0 - done)
        return PENALTY * (1.0 - (2.0 * self.up() - 1.0).abs().pow(exponent)).mean()


def weighted_error(found: Tensor, wanted: Tensor, importance: Tensor | None) -> Tensor:
    """Return the weighted mean square of what is missed."""
    square = (found - wanted).square()
    return (square if importance is None else square * importance).mean()
