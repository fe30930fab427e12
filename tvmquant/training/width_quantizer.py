"""Quantizers whose bit widths follow from a step and a range, both learned.

With a step ``d`` and a range ``q``, ``y = d round(clip(x, -q, q) / d)``; of activations the range
is from 0, or from below it in the proportion that calibration found. It takes

    B = ceil(log2(round(q / d) + 1)) + 1                                                        (1)

bits, one less without a sign; ``round`` and ``ceil`` pass gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvmquant.formats import MOST_BITS
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.rounding import rounded


class WidthQuantizer(TrainedQuantizer):
    """Round to steps and within ranges that are learned.

    Parameters
    ----------
    given : TrainedQuantizer
        Of a weight with a scale per channel, or of an activation.
    least : int
        Bits that it keeps.

    Attributes
    ----------
    reach : float32 Parameter like scale
        ``q``: of weights the greatest magnitude, of activations the length of the range.
    widths : int32 tensor like scale, of an activation of shape (1,)
        0 while they are learned.
    """

    widths: Tensor
    first_reach: Tensor

    def __init__(self, given: TrainedQuantizer, least: int) -> None:
        super().__init__(given, given.rule, per_item=given.per_item)
        levels = int(given.qmax) if self.is_weight else int(given.qmax) - int(given.qmin)
        self.least = least
        # of activations, what of the range lies below 0
        self.below = float(given.zero_point - given.qmin) / levels
        self.register_buffer("first_reach", self.first * levels)
        self.reach = torch.nn.Parameter(self.first * levels)
        count = self.scale.numel() if self.is_weight else 1
        self.register_buffer("widths", torch.zeros(count, dtype=torch.int32))

    @property
    def is_weight(self) -> bool:
        """Whether it has a sign of its own, and levels alike on both sides of 0."""
        return not self.per_item

    @property
    def is_fixed(self) -> bool:
        """Whether widths are chosen."""
        return bool(self.widths.any())

    def levels(self, bits: Any) -> Any:
        """Return the greatest integer of a width, its sign apart."""
        return 2 ** (bits - int(self.is_weight)) - 1

    def wanted(self) -> Tensor:
        """Return the bits that steps and ranges ask for, before they are rounded up."""
        return torch.log2(self._ratio() + 1.0) + float(self.is_weight)

    def bits(self) -> Tensor:
        """Return the bits, like `widths`; their gradient is that of `wanted`."""
        if self.is_fixed:
            return self.widths.to(self.scale.dtype)
        whole = torch.log2(rounded(self._ratio()) + 1.0)
        found = torch.ceil(whole.detach() - 1e-4) - whole.detach() + whole
        return torch.clamp(found + float(self.is_weight), self.least, MOST_BITS)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest number of steps."""
        most = self.levels(self.widths) if self.is_fixed else self.reach / self.scale
        if self.is_weight:
            return -most, most
        if self.is_fixed:
            below = self._zero_point(most)
            return -below, most - below
        return -self.below * most, (1.0 - self.below) * most

    def fix(self, widths: Tensor) -> None:
        """Let widths be these; the ranges stay, steps follow."""
        with torch.no_grad():
            self.widths.copy_(widths)
            self.scale.copy_(self.reach / self.levels(self.widths))
            self.first.copy_(self.scale)
        self.reach.requires_grad_(False)

    def settle(self) -> None:
        """Bring what is written back up to date."""
        with torch.no_grad():
            most = self.levels(self.widths) if self.is_fixed else self.reach / self.scale
            whole = int(torch.round(most.max()))
            self.qmax.fill_(whole)
            self.qmin.fill_(-whole if self.is_weight else 0)
            if not self.is_weight:
                self.zero_point.fill_(int(self._zero_point(torch.tensor(float(whole)))))

    def written(self, weight: Tensor) -> Tensor:
        """Return a weight in whole numbers of its steps, within its channels' ranges."""
        with torch.no_grad():
            found: Tensor = self(weight)
            return found

    def keep_near(self) -> None:
        """Keep steps and ranges near the first ones, and to widths that there are."""
        super().keep_near()
        if self.is_fixed:
            return
        with torch.no_grad():
            near = self.kept_near(self.reach, self.first_reach)
            ends = (self.scale * self.levels(bits) for bits in (self.least, MOST_BITS))
            self.reach.copy_(torch.clamp(near, *ends))

    def _ratio(self) -> Tensor:
        """Return range over step, the same for all steps of an activation."""
        ratio = self.reach / self.scale
        return ratio if self.is_weight else ratio.mean().reshape(1)

    def _zero_point(self, most: Tensor) -> Tensor:
        return torch.round(self.below * most)

    def _factor(self, x: Tensor) -> Tensor | float:
        if not self.is_fixed:
            return 1.0
        return torch.rsqrt(self._sharing(x) * self.levels(self.widths).to(x.dtype))
