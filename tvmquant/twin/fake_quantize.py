"""Equations (1) and (2) of `tvmquant.arithmetic` in torch, with a straight-through gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def fake_quantize_half_even(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int = -1
) -> Tensor:
    """Quantize and dequantize, ties to even: ``(q - zero_point) * scale`` with q of equation (1).

    Parameters
    ----------
    x : float32 tensor of any shape
    scale : float32 tensor of shape (1,), (C,) along `axis`, or that of `x`; > 0
    zero_point : int32 tensor of shape (1,) or (C,)
    qmin, qmax : int, qmin <= zero_point <= qmax
    axis : int
        Axis of the channels of `x`; -1 where there is one scale for the tensor.

    Returns
    -------
    float32 tensor of the shape of `x`
        Equal to ``dequantize(quantize_half_even(x))`` bit for bit.

    Notes
    -----
    The rounding passes gradients unchanged (straight-through, Bengio et al., 2013). The clip passes
    none to clipped values. The gradient that reaches `scale` is that of LSQ (Esser et al., 2020,
    eq. 3). Differentiable twice.

    Clipping precedes rounding, which gives the same integers since the limits are integers.
    """
    scale, zero_point = along_axis(scale, x, axis), along_axis(zero_point, x, axis)
    low, high = (qmin - zero_point).to(x.dtype), (qmax - zero_point).to(x.dtype)
    return round_half_even(torch.clamp(x / scale, low, high)) * scale


def round_half_even(x: Tensor) -> Tensor:
    """Round to integers, ties to even and never to -0.0; the gradient passes unchanged."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return torch.round(x) + 0.0
    # Exact: either the rounded value is 0 or both are within a factor of two of each other.
    return x + (torch.round(x) - x).detach()


def along_axis(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape per-channel `values` so that they broadcast along one axis of `x`."""
    if values.numel() == 1:
        return values.reshape(())
    if values.shape == x.shape:
        return values
    return values.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
