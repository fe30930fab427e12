"""Quantizers of the twin that are trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tvmquant.errors import TrainingError
from tvmquant.training.mapped_weights import MAPS, WeightMap
from tvmquant.training.recipe import Recipe
from tvmquant.training.rounding import quantized
from tvmquant.training.sections import Quantizer
from tvmquant.twin import Twin
from tvmquant.twin.fake_quantize import along_axis
from tvmquant.twin.quantizer_module import FakeQuantize, FakeSign

# A step stays within this factor of the calibrated one.
MOST_CHANGE = 16.0


class TrainedQuantizer(FakeQuantize):
    """Round with a gradient of choice, in steps that may be learned.

    Parameters
    ----------
    given : FakeQuantize
        Calibrated.
    rule : Quantizer
    per_item : bool
        Whether the first axis of what is quantized is the batch.
    weight : float tensor, optional
        As calibrated; where the rule maps it.

    Attributes
    ----------
    first : float32 tensor like scale
        The calibrated steps.
    blend : float
        Share of the quantized number in what goes on while training (`training.affine`).

    Notes
    -----
    Esser et al. (2020), "Learned Step Size Quantization": the gradient of a step is multiplied by
    ``1 / sqrt(N qmax)``, N being the numbers of a tensor, or of one channel or one item of it, that
    share it. PACT's of a clip ``qmax s`` is the sum of those that are clipped (eq. 3).
    """

    first: Tensor

    def __init__(
        self, given: FakeQuantize, rule: Quantizer, *, per_item: bool, weight: Tensor | None = None
    ) -> None:
        super().__init__(
            given.scale.detach().clone(), given.zero_point, int(given.qmin), int(given.qmax),
            axis=given.axis, multiplier=given.multiplier, groups=given.groups,
        )  # fmt: skip
        self.per_item = per_item
        self.register_buffer("first", self.scale.detach().clone())
        self.blend = 1.0
        self.learn_scale()
        self.follow(rule)
        self.map: WeightMap | None = None
        if weight is not None and rule.map != "identity":
            reach = along_axis(self.first, weight, self.axis) * self.qmax
            multiplier = 1.0 if self.multiplier is None else self.multiplier
            self.map = MAPS[rule.map](weight, reach * multiplier)

    def follow(self, rule: Quantizer) -> None:
        """Quantize by another rule from now on."""
        self.rule = rule
        self.scale.requires_grad_(rule.step != "fixed")

    def begin_with(self, step: float) -> None:
        """Begin with another step, for all channels."""
        with torch.no_grad():
            self.scale.fill_(step)
            self.first.fill_(step)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor quantized and dequantized."""
        chance = torch.is_grad_enabled()  # while training only
        if chance and self.blend == 0.0:
            return x
        scale = self.scale.view_as(self.scale)
        if scale.requires_grad:
            factor = self._factor(x)
            scale.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
        scale = along_axis(scale, x, self.axis)
        if self.multiplier is not None:
            scale = scale * self.multiplier
        low, high = (along_axis(end.to(scale.dtype), x, self.axis) for end in self.ends())
        x = x.to(scale.dtype)
        rule = self.rule
        found = quantized(
            x if self.map is None else self.map(x),
            scale,
            low,
            high,
            **rule.rounding.model_dump(),
            stochastic=chance and rule.stochastic,
            clips_only=rule.step == "clip",
        )
        if chance and self.rule.share < 1.0:
            found = torch.where(torch.rand_like(x) < self.rule.share, found, x)
        if chance and self.blend < 1.0:
            found = torch.lerp(x, found, self.blend)
        return found

    def written(self, weight: Tensor) -> Tensor:
        """Return what is rounded of a weight, which is what the graph gets."""
        return weight if self.map is None else self.map(weight)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest number of steps, zero points taken off."""
        return self.qmin - self.zero_point, self.qmax - self.zero_point

    def keep_near(self) -> None:
        """Bring steps back to within `MOST_CHANGE` of the calibrated ones.

        Several of an activation keep their ratios: the weight that reads it was divided by them.
        """
        with torch.no_grad():
            self.scale.copy_(self.kept_near(self.scale, self.first))
        if self.map is not None:
            self.map.keep_near()

    def kept_near(self, numbers: Tensor, first: Tensor) -> Tensor:
        """Return numbers like steps near the first ones."""
        ratio = (numbers / first).clamp(1.0 / MOST_CHANGE, MOST_CHANGE)
        return first * (ratio.mean() if self.per_item else ratio)

    def _factor(self, x: Tensor) -> Tensor | float:
        return 1.0 / math.sqrt(max(self._sharing(x) * int(self.qmax), 1.0))

    def _sharing(self, x: Tensor) -> float:
        """Return how many numbers share a step."""
        return x.numel() / self.scale.numel() / (len(x) if self.per_item else 1)


def put_in(twin: Twin, recipe: Recipe) -> list[TrainedQuantizer]:
    """Let a recipe's quantizers take the place of those of a twin that are to be trained.

    Scales that came with the model stay, and so do signs.

    Raises
    ------
    TrainingError
        When there is nothing to quantize.
    """
    weights = {edge: twin.weights[layer] for layer, edge in twin.weight_edges.items()}
    found = []
    given = twin.quantizers
    if not given:
        raise TrainingError("the model has nothing that is quantized")
    for edge in twin.edges:
        old = given[edge.id]
        if edge.fixed or isinstance(old, FakeSign) or not isinstance(old, FakeQuantize):
            continue
        weight = weights.get(edge.id)
        rule = recipe.activations if weight is None else recipe.weights
        found.append(TrainedQuantizer(old, rule, per_item=weight is None, weight=weight))
        twin.replace_quantizer(edge.id, found[-1])
    return found
