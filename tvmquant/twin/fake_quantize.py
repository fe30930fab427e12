"""Equations (1) and (2) of `tvmquant.arithmetic` in torch, with a straight-through gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tvmquant.weight_pairs import bound_pairs, outputs_back, outputs_first


def fake_quantize_half_even(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int | Tensor,
    qmax: int | Tensor,
    axis: int = -1,
) -> Tensor:
    """Quantize and dequantize, ties to even: ``(q - zero_point) * scale`` with q of equation (1).

    Parameters
    ----------
    x : float32 tensor of any shape
    scale : float32 tensor of shape (1,), (C,) along `axis`, or that of `x`; > 0
    zero_point : int32 tensor of shape (1,) or (C,)
    qmin, qmax : int or int32 tensor without axes, qmin <= zero_point <= qmax
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


def fake_quantize_bounded(
    x: Tensor, scale: Tensor, qmax: int, axis: int, groups: int = 1
) -> Tensor:
    """Quantize and dequantize a weight, and bound its pairs in between.

    The integers are those of `tvmquant.weight_pairs.bound_pairs`. Bounding passes gradients
    unchanged, like rounding.

    Parameters
    ----------
    x : float32 tensor
        Weight of a convolution (O, I / groups, kh, kw), a transposed one (I, O / groups, kh, kw),
        or a dense layer (I, O).
    scale : float32 tensor of shape (1,), (C,) along `axis`, or that of `x`; > 0
    qmax : int
        Levels are symmetric.
    axis : int
        Of the outputs.
    groups : int
    """
    scale = along_axis(scale, x, axis)
    steps = round_half_even(torch.clamp(x / scale, -qmax, qmax))
    with torch.no_grad():
        integers = outputs_first(steps.detach().cpu().numpy().astype(np.int8), axis, groups)
        bounded = outputs_back(bound_pairs(integers), axis, groups).astype(np.float32)
        excess = torch.from_numpy(bounded).to(x.device, x.dtype) - steps
    return (steps + excess) * scale


def fake_quantize_sign(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    middle: int,
    axis: int = -1,
    *,
    strict: bool = False,
) -> Tensor:
    """Round to the levels beside `middle`: ``(middle + 1 - zero_point) * scale`` or the lower one.

    Parameters
    ----------
    x : float32 tensor of any shape
    scale : float32 tensor of shape (1,), (C,) along `axis`, or that of `x`; > 0
    zero_point : int32 tensor of shape (1,)
    middle : int
        What lies below it is rounded down.
    axis : int
        Axis of the channels of `x`; -1 where there is one scale for the tensor.
    strict : bool
        Whether the middle itself is rounded down.

    Notes
    -----
    The gradient passes within one step of the middle, and is 0 beyond: for a scale of 1 and zero
    point in the middle, that of BinaryNet (Courbariaux et al., 2016).
    """
    scale = along_axis(scale, x, axis)
    centre = (middle - along_axis(zero_point, x, axis)) * scale
    upper = x > centre if strict else x >= centre
    levels = centre + torch.where(upper, scale, -scale)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return levels
    passed = torch.minimum(torch.maximum(x, centre - scale), centre + scale)
    return levels + (passed - passed.detach())


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
