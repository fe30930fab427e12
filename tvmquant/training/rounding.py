"""Gradients that stand in for that of rounding, which is 0.

Of ``v = x / s``, ``e = v - round(v)`` and the gradient ``g`` of the rounded number, that of ``x``
within the range is ``g f``:

    ste      1                              Bengio et al. (2013)
    pbgs     1 + d |e|                      position-based scaling
    ewgs     1 + d sign(g) e                Lee et al. (2021), element-wise scaling
    acos     1 + d sin(pi e)
    tanh     1 + d sign(g) tanh(a e)
    invtanh  1 + d sign(g) artanh(a e)      a < 2

Public code of the last three has them with a peak of 1/2: its ``d`` is twice (acos, tanh) or, at
``a`` = 1.9, 3.66 times (invtanh) that of here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

# Of e, sign(g) and a: what d is multiplied by.
Shape = Callable[[Tensor, Tensor, float], Tensor]

SHAPES: Final[Mapping[str, Shape | None]] = MappingProxyType(
    {
        "ste": None,
        "pbgs": lambda e, sign, a: e.abs(),
        "ewgs": lambda e, sign, a: sign * e,
        "acos": lambda e, sign, a: torch.sin(math.pi * e),
        "tanh": lambda e, sign, a: sign * torch.tanh(a * e),
        "invtanh": lambda e, sign, a: sign * torch.atanh(a * e),
    }
)


def rounded(
    v: Tensor, shape: str = "ste", delta: float = 0.0, alpha: float = 1.9, *,
    stochastic: bool = False,
) -> Tensor:  # fmt: skip
    """Round to integers, ties to even and never to -0.0, with a gradient of `SHAPES`.

    Parameters
    ----------
    v : float tensor
        In steps, clipped to the range.
    shape, delta, alpha
        As of `training.recipe.Rounding`.
    stochastic : bool
        Up with the probability of the distance from the lower integer, by torch's random numbers.
    """
    result: Tensor = _Rounding.apply(v, shape, delta, alpha, stochastic)  # type: ignore[no-untyped-call]
    return result


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Tensor, shape: str, delta: float, alpha: float, stochastic: bool
    ) -> Tensor:
        whole = (torch.floor(v + torch.rand_like(v)) if stochastic else torch.round(v)) + 0.0
        ctx.shape, ctx.delta, ctx.alpha = shape, delta, alpha
        if SHAPES[shape] is not None:
            ctx.save_for_backward(v - torch.round(v))
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        shape = SHAPES[ctx.shape]
        if shape is not None:
            (error,) = ctx.saved_tensors
            gradient = gradient * (1.0 + ctx.delta * shape(error, gradient.sign(), ctx.alpha))
        return gradient, None, None, None, None
