"""Weights that pass through a function before they are rounded; what ships is its result.

    tanh       ``W tanh(w) / max |tanh(w)|``, ``W`` being the greatest magnitude of the calibrated
               weight (DoReFa-Net: Zhou et al., 2016)
    interval   of ``u = |w| / (s qmax)``, ``sign(w) s qmax clip((u - c + d) / (2 d), 0, 1)``:
               what lies within ``d`` of a centre ``c`` is spread over all levels, both learned
               (QIL: Jung et al., 2019, its exponent 1)

``s`` are the calibrated steps. At first the former is the identity nearly, the latter exactly.

DoReFa-Net's own levels are odd multiples of half a step, without 0. They need one bit more than
they have where kernels hold integers: here levels are those of all weights, which are symmetric.
QIL's map of activations is a learned step where, as behind a rectifier, their interval begins at 0;
the survey behind this project calls it QIT, and says that it learns the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

# Least half-width of an interval.
NARROWEST: Final = 1e-2


class WeightMap(nn.Module):
    """What a weight passes through.

    Parameters
    ----------
    weight : float tensor
        Calibrated.
    reach : float tensor that broadcasts against it
        ``s qmax``.
    """

    def keep_near(self) -> None:
        """Bring what is learned back to what there is."""


class TanhMap(WeightMap):
    """``W tanh(w) / max |tanh(w)|``."""

    most: Tensor

    def __init__(self, weight: Tensor, reach: Tensor) -> None:
        super().__init__()
        self.register_buffer("most", weight.detach().abs().max())

    def forward(self, weight: Tensor) -> Tensor:
        """Return what is rounded."""
        bent = torch.tanh(weight)
        return bent * (self.most / bent.abs().max())


class IntervalMap(WeightMap):
    """``sign(w) s qmax clip((u - c + d) / (2 d), 0, 1)``.

    Attributes
    ----------
    centre, half_width : float32 Parameters without axes
        ``c`` and ``d``.
    """

    reach: Tensor

    def __init__(self, weight: Tensor, reach: Tensor) -> None:
        super().__init__()
        self.register_buffer("reach", reach.detach().clone())
        self.centre, self.half_width = (nn.Parameter(torch.tensor(0.5)) for _ in range(2))

    def forward(self, weight: Tensor) -> Tensor:
        """Return what is rounded."""
        from_below = weight.abs() / self.reach - self.centre + self.half_width
        share = (from_below / (2.0 * self.half_width)).clamp(0.0, 1.0)
        return weight.sign() * self.reach * share

    def keep_near(self) -> None:
        """Keep the interval where weights are."""
        with torch.no_grad():
            self.half_width.clamp_(NARROWEST, 1.0)
            self.centre.clamp_(0.0, 1.0)


MAPS: Final[Mapping[str, Callable[[Tensor, Tensor], WeightMap]]] = MappingProxyType(
    {"tanh": TanhMap, "interval": IntervalMap}
)
