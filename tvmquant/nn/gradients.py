"""What published networks of one bit take for the derivative of a sign.

A sign's own derivative is 0. Each network replaces it, of activations ``x`` by a function of ``x``,
of weights ``a sign(w)`` by one of ``w``, of the magnitude ``a`` and of the ``n`` weights that share
it, whose own derivative is left out, unless said otherwise.

References
----------
Hubara et al. (2016), "Binarized Neural Networks", eq. (4); Rastegari et al. (2016), "XNOR-Net",
section 3.1; Liu et al. (2018), "Bi-Real Net", section 3.3; Darabi et al. (2018), "BNN+"; Liu et al.
(2020), "ReActNet".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from tvmquant.errors import QuantizationError

# of BNN+: the larger, the closer to a step
SWISH_BETA: Final = 5.0


@dataclass(frozen=True)
class Gradient:
    """The derivatives that stand in for those of signs.

    Attributes
    ----------
    activation : callable
        Derivative of ``sign(x)``, elementwise, of ``x`` of any shape.
    weight : callable
        Derivative of ``a sign(w)`` by ``w``, elementwise, of ``w`` (O, ...), of ``a``, which
        broadcasts to it, and of the number of weights per output channel.
    """

    activation: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor, Tensor, int], Tensor]


def clipped(x: Tensor) -> Tensor:
    """Return ``1[|x| <= 1]``, the derivative of ``clip(x, -1, 1)``: the straight-through one."""
    return (x.abs() <= 1.0).to(x.dtype)


def triangle(x: Tensor) -> Tensor:
    """Return ``max(2 - 2 |x|, 0)``, of Bi-Real's polynomials ``x (2 -+ x)`` on either side of 0."""
    return x.abs().mul_(-2.0).add_(2.0).clamp_min_(0.0)


def swish(x: Tensor) -> Tensor:
    """Return the derivative of SwishSign, ``B (2 - B x tanh(B x / 2)) / (1 + cosh(B x))``.

    SwishSign is ``2 s(B x) (1 + B x (1 - s(B x))) - 1``, ``s`` the logistic function. It overshoots
    the signs, so its derivative is negative where ``B |x|`` is above 2.4.
    """
    scaled = SWISH_BETA * x
    # 1 / (1 + cosh y) = 2 s(y) s(-y), which does not overflow
    falling = 2.0 * torch.sigmoid(scaled) * torch.sigmoid(-scaled)
    return SWISH_BETA * (2.0 - scaled * torch.tanh(scaled / 2.0)) * falling


def _clipped_weight(weight: Tensor, scale: Tensor, count: int) -> Tensor:
    return clipped(weight)


def _xnor_weight(weight: Tensor, scale: Tensor, count: int) -> Tensor:
    return 1.0 / count + scale * clipped(weight)


def _magnitude_aware(weight: Tensor, scale: Tensor, count: int) -> Tensor:
    return scale * (weight.abs() < 1.0)


def _swish_weight(weight: Tensor, scale: Tensor, count: int) -> Tensor:
    return scale * swish(weight)


GRADIENTS: Final[Mapping[str, Gradient]] = MappingProxyType(
    {
        # BinaryNet
        "ste": Gradient(clipped, _clipped_weight),
        # of BWN too, which has real activations; 1/n is what the paper takes of the magnitude's
        "xnor": Gradient(clipped, _xnor_weight),
        "bireal": Gradient(triangle, _magnitude_aware),
        # as in its authors' code
        "reactnet": Gradient(triangle, _clipped_weight),
        "bnn+": Gradient(swish, _swish_weight),
    }
)


def gradient_named(name: str) -> Gradient:
    """Return one of `GRADIENTS`.

    Raises
    ------
    QuantizationError
        If there is none of that name.
    """
    if name not in GRADIENTS:
        known = ", ".join(GRADIENTS)
        raise QuantizationError(f"unknown gradient {name!r} of a sign; expected one of {known}")
    return GRADIENTS[name]


def count_per_output(weight: Tensor) -> int:
    """Return how many weights (O, ...) an output channel has."""
    return math.prod(weight.shape[1:])
