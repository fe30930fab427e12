"""Weights of several widths that follow from those of the widest, as the library derives them.

Of the widest, ``q = round(clip(w / s))``. Of each other, with ``M / 2**n`` the dyadic number of 8
bits next to ``s / s_b``::

    q_b = clip((q M + 2**(n - 1)) >> n, -qmax, qmax)          equation (3) of `tvmquant.arithmetic`

so that a library needs ``q`` alone (`tvmquant.passes.derived_weights`). Gradients are those of
rounding ``q s`` to steps of ``s_b``.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.several_widths import SeveralWidths
from tvmquant.twin.fake_quantize import along_axis

# Products with 8-bit weights, and what rounds them, are exact in float32.
MULTIPLIER_BITS: Final = 8
MOST_SHIFT: Final = 22


class SharedQuantizer(TrainedQuantizer):
    """Round a weight that has several widths.

    Parameters
    ----------
    given : TrainedQuantizer
    widest : SharedQuantizer, optional
        Of the same weight; default: this is the widest.
    """

    def __init__(self, given: TrainedQuantizer, widest: SharedQuantizer | None = None) -> None:
        super().__init__(given, given.rule, per_item=False)
        # in a tuple: its parameters are its own
        self._widest = () if widest is None else (widest,)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weight quantized and dequantized."""
        if not self._widest:
            return super().forward(x)
        steps, scale = self._widest[0].steps(x)
        with torch.no_grad():
            multiplier, shift = dyadic(self._widest[0].scale, self.scale)
            multiplier, shift = (along_axis(v, x, self.axis) for v in (multiplier, shift))
            terms = steps * multiplier + torch.exp2(shift - 1)
            whole = torch.floor(terms * torch.exp2(-shift)) + 0.0
            low, high = (along_axis(end.to(x.dtype), x, self.axis) for end in self.ends())
            own = self._scale_of(x)
            value = torch.clamp(whole, low, high) * own
        return _value(super().forward(x + (steps * scale - x).detach()), value)

    def steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the integers of a weight, and their steps, without gradients."""
        with torch.no_grad():
            scale = self._scale_of(x)
            low, high = (along_axis(end.to(x.dtype), x, self.axis) for end in self.ends())
            found = torch.minimum(torch.maximum(x / scale, low), high)
            return torch.round(found) + 0.0, scale

    def written(self, weight: Tensor) -> Tensor:
        """Return the weight in whole numbers of its steps."""
        with torch.no_grad():
            found: Tensor = self(weight)
            return found

    def _scale_of(self, x: Tensor) -> Tensor:
        scale = along_axis(self.scale.detach(), x, self.axis)
        return scale if self.multiplier is None else scale * self.multiplier


def dyadic(wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    """Return multipliers and shifts of the dyadic numbers next to the ratios of steps.

    Parameters
    ----------
    wide, narrow : float32 tensors
        Steps.

    Returns
    -------
    float32 tensors of whole numbers
        Multipliers of up to `MULTIPLIER_BITS` bits, shifts from 1 to `MOST_SHIFT`.
    """
    ratio = wide / narrow
    _, exponent = torch.frexp(ratio)
    shift = torch.clamp(MULTIPLIER_BITS - exponent, 1, MOST_SHIFT).to(ratio.dtype)
    return torch.round(ratio * torch.exp2(shift)), shift


def share_weights(widths: SeveralWidths) -> None:
    """Let the weights of a network of several widths follow from those of the widest."""
    for edge in widths.weight_edges.values():
        switched = widths.switched.get(edge)
        if switched is None:
            continue
        widest: SharedQuantizer | None = None
        for name, given in switched.by_format.items():
            assert isinstance(given, TrainedQuantizer)
            found = SharedQuantizer(given, widest)
            widest = widest or found
            switched.by_format[name] = found
            place = [q is given for q in widths.quantizers].index(True)
            widths.quantizers[place] = found
    widths.set_widths(widths.choices)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, _like: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _value(like: Tensor, value: Tensor) -> Tensor:
    """Return a value with the gradient of another."""
    found: Tensor = _Value.apply(like, value)  # type: ignore[no-untyped-call]
    return found
