"""Activations with learned shifts, of ReActNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvmquant.nn.gradients import gradient_named
from tvmquant.nn.signs import sign


class RSign(nn.Module):
    """The sign of what is above a learned threshold of each channel.

    ``h(x) = 1 if x >= alpha_c else -1``: Liu et al. (2020), "ReActNet", section 4.2. The paper has
    -1 at the threshold itself.

    Parameters
    ----------
    channels : int
    gradient : str
        Which of `tvmquant.nn.GRADIENTS` takes the place of its derivative.

    Attributes
    ----------
    threshold : parameter (C, 1, 1)
        alpha, 0 at first.
    """

    def __init__(self, channels: int, *, gradient: str = "reactnet") -> None:
        super().__init__()
        gradient_named(gradient)
        self.gradient = gradient
        self.threshold = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return -1 or 1 for each value of x, (N, C, H, W)."""
        return sign(x - self.threshold, self.gradient)

    def extra_repr(self) -> str:
        """Describe the module in a line."""
        return f"{len(self.threshold)}, gradient={self.gradient!r}"


class RPReLU(nn.Module):
    """Two slopes that meet in a learned point of each channel.

    ``f(x) = x - gamma_c + zeta_c if x > gamma_c else beta_c (x - gamma_c) + zeta_c``: Liu et al.
    (2020), "ReActNet", section 4.2.

    Parameters
    ----------
    channels : int

    Attributes
    ----------
    gamma, zeta : parameters (C, 1, 1)
        Shifts of the input and of the output, 0 at first.
    beta : parameter (C,)
        Slope below gamma, 0.25 at first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels, 1, 1))
        self.zeta = nn.Parameter(torch.zeros(channels, 1, 1))
        self.beta = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """Return f of each value of x, (N, C, H, W)."""
        return nn.functional.prelu(x - self.gamma, self.beta) + self.zeta

    def extra_repr(self) -> str:
        """Describe the module in a line."""
        return f"{len(self.beta)}"
