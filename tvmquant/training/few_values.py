"""Quantizers of the twin whose weights, or activations, have few values."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tvmquant.nn import binarize_weight, ternarize_weight
from tvmquant.nn.gradients import gradient_named
from tvmquant.nn.sums import weight_terms
from tvmquant.training.method_sections import Binarization
from tvmquant.twin.quantizer_module import FakeQuantize, FakeSign

# Of the largest magnitude of a weight: Zhu et al. (2017), "Trained Ternary Quantization".
ZERO_BELOW = 0.05
LEAST_SCALE = torch.finfo(torch.float32).tiny


class TrainedSign(FakeSign):
    """Signs of activations, with the gradient of a recipe.

    Parameters
    ----------
    given : FakeSign
    how : Binarization
    """

    def __init__(self, given: FakeSign, how: Binarization) -> None:
        super().__init__(
            given.scale.detach().clone(), given.zero_point, int(given.qmin), int(given.qmax),
            axis=given.axis, multiplier=given.multiplier, strict=given.strict,
        )  # fmt: skip
        self.how = how
        middle = int(self.zero_point) == int(self.qmin) + 1
        self._is_plain = middle and self.scale.numel() == 1 and float(self.scale) == 1.0

    def follow(self, how: Binarization) -> None:
        """Have another gradient from now on."""
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """Return the level of each number."""
        if self._is_plain:
            return self._signs(x)
        if self.axis >= 0 or self.multiplier is not None:
            return super().forward(x)
        centre = (int(self.qmin) + 1 - self.zero_point) * self.scale
        return centre + self.scale * self._signs((x - centre) / self.scale)

    def _signs(self, x: Tensor) -> Tensor:
        signs: Tensor = _Signs.apply(x, self.how.gradient, self.strict)  # type: ignore[no-untyped-call]
        return signs


class _Signs(torch.autograd.Function):
    """`tvmquant.nn.sign`, in place where that saves memory to be cleared; also above 0 only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: str, strict: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gradient = gradient_named(gradient)
        upper = x > 0.0 if strict else x >= 0.0
        return upper.to(x.dtype).mul_(2.0).sub_(1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.gradient.activation(x).mul_(gradients[0]), None, None


class FewValues(FakeQuantize):
    """A weight of few values, made of real numbers.

    Parameters
    ----------
    given : FakeQuantize
    how : Binarization
    """

    def __init__(self, given: FakeQuantize, how: Binarization) -> None:
        super().__init__(
            given.scale.detach().clone(), given.zero_point, int(given.qmin), int(given.qmax),
            axis=given.axis, multiplier=given.multiplier, groups=given.groups,
        )  # fmt: skip
        self.how = how

    def follow(self, how: Binarization) -> None:
        """Be made otherwise from now on."""
        self.how = how

    @abstractmethod
    def made(self, rows: Tensor) -> Tensor:
        """Return the few values of real numbers, (O, ...), with gradients."""

    @abstractmethod
    def steps(self, values: Tensor) -> Tensor:
        """Return the step (O,) that few values, (O, ...), are multiples of."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the few values, in the weight's layout, or the real numbers of a first phase."""
        if self.how.real_weights:
            return weight
        return self._made(weight)

    def written(self, weight: Tensor) -> Tensor:
        """Return the few values that ship, and take their steps for the scale."""
        with torch.no_grad():
            values = self._made(weight)
            steps = self.steps(values.movedim(self.axis, 0)).clamp_min(LEAST_SCALE)
            self.scale.copy_(steps.expand_as(self.scale))
        return values

    def limit(self) -> None:
        """Bring what is learned back to where it makes sense, after a step."""

    def _made(self, weight: Tensor) -> Tensor:
        return self.made(weight.movedim(self.axis, 0)).movedim(0, self.axis)


class SignedWeight(FewValues):
    """Signs times a magnitude of each output channel, or 1.

    Notes
    -----
    Courbariaux et al. (2015), "BinaryConnect", with ``stochastic``; Rastegari et al. (2016),
    "XNOR-Net", with ``scale``.
    """

    def made(self, rows: Tensor) -> Tensor:
        """Return the two values of each channel."""
        how = self.how
        values = binarize_weight(rows, how.gradient, scale=how.scale)
        if how.stochastic and torch.is_grad_enabled():
            with torch.no_grad():
                # 1 as often as (w + 1) / 2 says
                upper = 2.0 * torch.rand_like(rows) - 1.0 < rows
                drawn = torch.where(upper, values.abs(), -values.abs()) - values
            values = values + drawn
        return values

    def steps(self, values: Tensor) -> Tensor:
        """Return the magnitudes."""
        return values.flatten(1).abs().amax(1)


class TernaryWeight(FewValues):
    """-a, 0 and a of each output channel: Li et al. (2016), "Ternary Weight Networks"."""

    def made(self, rows: Tensor) -> Tensor:
        """Return the three values of each channel."""
        return ternarize_weight(rows)

    def steps(self, values: Tensor) -> Tensor:
        """Return the magnitudes."""
        return values.flatten(1).abs().amax(1)


class SumOfSigns(FewValues):
    """A sum of signs, each times a number: Lin et al. (2017), "ABC-Net" (`tvmquant.nn.ABCConv2d`).

    A library adds up a layer of one bit for each.
    """

    def made(self, rows: Tensor) -> Tensor:
        """Return the sum."""
        terms = self.terms(rows)
        return sum(terms[1:], terms[0])

    def terms(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what is added up."""
        return weight_terms(rows, self.how.terms)

    def steps(self, values: Tensor) -> Tensor:
        """Return what the greatest level would be: the terms ship instead (`SplitWeights`)."""
        return values.flatten(1).abs().amax(1) / self.qmax


class TwoScales(FewValues):
    """-n, 0 and p, both learned, of a layer.

    A number is 0 up to ``t = 0.05 max |w|``. What ships are weights of 8 bits: the greater of the
    two is 127 steps, the other a whole number of them, also while training.

    Attributes
    ----------
    upper, lower : parameter (1,)
        p and n; at first the mean magnitudes of what lies beyond t on either side.

    Notes
    -----
    Zhu et al. (2017), "Trained Ternary Quantization", eqs. (6) to (8): the gradient of p is the sum
    of those of the numbers above t, that of n the negative sum of those below; that of a number is
    multiplied by p, 1 or n.
    """

    def __init__(self, given: FakeQuantize, how: Binarization, weight: Tensor) -> None:
        super().__init__(given, how)
        with torch.no_grad():
            limit = ZERO_BELOW * weight.abs().max()
            upper, lower = (
                (w * (w > limit)).sum() / (w > limit).sum().clamp_min(1) for w in (weight, -weight)
            )
        self.upper, self.lower = (
            nn.Parameter(number.reshape(1).clamp_min(LEAST_SCALE).clone())
            for number in (upper, lower)
        )

    def made(self, rows: Tensor) -> Tensor:
        """Return the three values."""
        step = self._step()
        upper, lower = (
            number + (torch.round(number / step) * step - number).detach()
            for number in (self.upper, self.lower)
        )
        values: Tensor = _Ternary.apply(rows, upper, lower)  # type: ignore[no-untyped-call]
        return values

    def steps(self, values: Tensor) -> Tensor:
        """Return the step, the same for all channels."""
        return self._step()

    def limit(self) -> None:
        """Keep both above 0."""
        with torch.no_grad():
            for number in (self.upper, self.lower):
                number.clamp_(min=LEAST_SCALE)

    def _step(self) -> Tensor:
        return torch.maximum(self.upper, self.lower).detach() / self.qmax


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
        limit = ZERO_BELOW * weight.abs().max()
        ctx.save_for_backward(weight > limit, weight < -limit, upper, lower)
        return torch.where(weight > limit, upper, torch.where(weight < -limit, -lower, 0.0))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,), (above, below, upper, lower) = gradients, ctx.saved_tensors
        factor = torch.where(above, upper, torch.where(below, lower, 1.0))
        of_upper, of_lower = (gradient * above).sum(), -(gradient * below).sum()
        return gradient * factor, of_upper.reshape(1), of_lower.reshape(1)
