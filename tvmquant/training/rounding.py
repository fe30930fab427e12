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

Tensors are taken in pieces that fit a core's cache, from the division to the sum of a step's
gradient: at 4 bits a training step of ResNet-20, its residual connections of 8 bits, takes 1.4
times that of the float network, 1.7 times if each operator passes over whole tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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

# Numbers that are taken at once on a processor: fewer cost more calls, more leave its cache.
PIECE: Final = 1 << 17
# What is nearer to 0 is 0.
TINY: Final = float(torch.finfo(torch.float32).tiny)


def rounded(v: Tensor) -> Tensor:
    """Round to integers, ties to even and never to -0.0; the gradient passes unchanged."""
    one, limit = v.new_ones(()), v.new_tensor(math.inf)
    return quantized(v, one, -limit, limit)


def quantized(
    x: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    shape: str = "ste",
    delta: float = 0.0,
    alpha: float = 1.9,
    stochastic: bool = False,
    clips_only: bool = False,
) -> Tensor:
    """Return ``scale * round(clip(x / scale, low, high))``, ties to even and never -0.0.

    Parameters
    ----------
    x : float tensor
    scale, low, high : tensors like x that broadcast against it
        Of the clip the gradients are exact; of the scale those of its two uses.
    shape, delta, alpha
        As of `training.sections.Rounding`.
    stochastic : bool
        Up with the probability of the distance from the lower integer, by torch's random numbers.
    clips_only : bool
        The scale has the gradient of what is clipped, at the limits included, only (PACT).
    """
    options = SHAPES[shape], delta, alpha, stochastic, clips_only
    result: Tensor = _Quantization.apply(x, scale, low, high, options)  # type: ignore[no-untyped-call]
    return result


class _Quantization(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, options: tuple[Any, ...]
    ) -> Tensor:
        *_, stochastic, _ = options
        found = torch.empty_like(x, memory_format=torch.contiguous_format)
        integers = torch.empty_like(found) if stochastic else found
        for part in _parts(x, scale, low, high):
            out, whole = found[part], integers[part]
            torch.div(x[part], scale, out=whole)
            torch.minimum(torch.maximum(whole, low, out=whole), high, out=whole)
            if stochastic:
                whole.add_(torch.rand_like(whole)).floor_()
            else:
                whole.round_()
            torch.mul(whole.add_(0.0), scale, out=out)
        ctx.options = options
        ctx.save_for_backward(x, scale, low, high, integers if stochastic else None)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, low, high, integers = ctx.saved_tensors
        shape, delta, alpha, _, clips_only = ctx.options
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        totals: list[Tensor | None] = [
            torch.zeros_like(of) if needed else None
            for of, needed in zip((scale, low, high), ctx.needs_input_grad[1:4], strict=True)
        ]
        d_scale, d_low, d_high = totals
        spaces: list[Tensor] = []
        for part in _parts(x, scale, low, high):
            g, out = gradient[part], dx[part]
            if not spaces:
                spaces = list(torch.empty(3, *out.shape, dtype=x.dtype, device=x.device))
            v, clipped, inside = (space[: len(out)] if out.ndim else space for space in spaces)
            torch.div(x[part], scale, out=v)
            torch.minimum(torch.maximum(v, low, out=clipped), high, out=clipped)
            # 0 inside, where the gradient passes; comparing and choosing took six times as long
            torch.sub(clipped, v, out=inside).abs_().neg_()
            _where_above(g, inside, -TINY, out)
            whole = torch.round(clipped, out=inside)
            if shape is not None:
                error = torch.sub(clipped, whole, out=clipped)
                out.mul_(shape(error, g.sign(), alpha).mul_(delta).add_(1.0))
            if integers is not None:
                whole = integers[part]
            if d_scale is not None and clips_only:
                at_end = torch.maximum(v - high, low - v)
                d_scale += _where_above(whole * g, at_end, -TINY, clipped).sum_to_size(scale.shape)
            elif d_scale is not None:
                each = torch.mul(whole, g, out=clipped).addcmul_(out, v, value=-1.0)
                d_scale += each.sum_to_size(scale.shape)
            if d_low is not None:
                d_low += _where_above(g * scale, low - v, 0.0, clipped).sum_to_size(low.shape)
            if d_high is not None:
                d_high += _where_above(g * scale, v - high, 0.0, clipped).sum_to_size(high.shape)
        return dx, *totals, None


def _where_above(values: Tensor, what: Tensor, threshold: float, out: Tensor) -> Tensor:
    """Write values, and 0 for those where something is not above a threshold."""
    choose = torch.ops.aten.threshold_backward.grad_input
    found: Tensor = choose(values, what, threshold, grad_input=out)
    return found


def _parts(x: Tensor, *broadcast: Tensor) -> Iterator[Any]:
    """Yield what indexes one piece of `x` after another, along whose first axis nothing varies."""
    varies = any(0 < t.ndim == x.ndim and t.shape[0] > 1 for t in broadcast)
    if x.ndim == 0 or x.is_cuda or varies:
        yield ...
        return
    rows = max(1, PIECE * len(x) // max(x.numel(), 1))
    for start in range(0, len(x), rows):
        yield slice(start, start + rows)
