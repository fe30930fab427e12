"""Signs of activations, and weights of few values, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvmquant.nn.gradients import Gradient, count_per_output, gradient_named

# Of ternary weights, relative to the mean magnitude: Li et al. (2016).
TERNARY_THRESHOLD = 0.7


def sign(x: Tensor, gradient: str = "ste") -> Tensor:
    """Return 1 where a tensor is not below 0, else -1.

    Parameters
    ----------
    x : float tensor of any shape
    gradient : str
        Which of `GRADIENTS` takes the place of its derivative.

    Returns
    -------
    tensor like x
        Exported to ONNX as ``Where(GreaterOrEqual(x, 0), 1, -1)``.

    Raises
    ------
    QuantizationError
        If there is no such gradient.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([-2.0, 0.0, 0.25], requires_grad=True)
    >>> sign(x, "bireal").tolist()
    [-1.0, 1.0, 1.0]
    >>> sign(x, "bireal").sum().backward()
    >>> x.grad.tolist()
    [0.0, 2.0, 1.5]
    """
    signs: Tensor = _Sign.apply(x, gradient_named(gradient))  # type: ignore[no-untyped-call]
    return signs


def binarize_weight(weight: Tensor, gradient: str = "ste", *, scale: bool = True) -> Tensor:
    """Return the signs of a weight, times a magnitude per output channel.

    Parameters
    ----------
    weight : float tensor (O, ...)
    gradient : str
        Which of `GRADIENTS` takes the place of its derivative.
    scale : bool
        Whether the magnitude is ``a = mean |w|``, which minimizes ``|w - a sign(w)|^2``, or 1.

    Returns
    -------
    tensor like weight

    Raises
    ------
    QuantizationError
        If there is no such gradient.

    Notes
    -----
    Rastegari et al. (2016), "XNOR-Net", eq. (6); without magnitude Hubara et al. (2016).
    """
    found = gradient_named(gradient)
    if scale:
        magnitude = weight.detach().abs().mean(_inputs(weight), keepdim=True)
    else:
        magnitude = weight.new_ones(())
    binary: Tensor = _Binarize.apply(weight, magnitude, found)  # type: ignore[no-untyped-call]
    return binary


def ternarize_weight(weight: Tensor) -> Tensor:
    """Return -a, 0 or a for each number of a weight, with the gradient of the identity.

    Parameters
    ----------
    weight : float tensor (O, ...)

    Returns
    -------
    tensor like weight
        0 where ``|w|`` is at most ``d = 0.7 mean |w|``; ``a``, of each output channel, is the mean
        of ``|w|`` where it is greater.

    Notes
    -----
    Li et al. (2016), "Ternary Weight Networks": ``a`` minimizes the distance to w, given d.
    """
    ternary: Tensor = _Ternarize.apply(weight)  # type: ignore[no-untyped-call]
    return ternary


def _inputs(weight: Tensor) -> tuple[int, ...]:
    return tuple(range(1, weight.ndim))


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gradient = gradient
        return torch.where(x >= 0.0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.gradient.activation(x), None


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, magnitude: Tensor, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(weight, magnitude)
        ctx.gradient = gradient
        return torch.where(weight >= 0.0, magnitude, -magnitude)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, magnitude = ctx.saved_tensors
        count = count_per_output(weight)
        return gradients[0] * ctx.gradient.weight(weight, magnitude, count), None, None


class _Ternarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        axes, magnitudes = _inputs(weight), weight.abs()
        kept = magnitudes > TERNARY_THRESHOLD * magnitudes.mean(axes, keepdim=True)
        count = kept.to(weight.dtype).sum(axes, keepdim=True)
        # none is kept of a channel of zeros
        scale = (magnitudes * kept).sum(axes, keepdim=True) / count.clamp_min(1.0)
        return torch.where(kept, torch.where(weight >= 0.0, scale, -scale), 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
