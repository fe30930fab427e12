"""The losses whose growth is the cost of quantization, and random vectors of their curvature.

The output of one item is ``z`` of shape (C, P): C values at each of P positions. Its loss against
targets ``t`` of that shape is a mean over positions; S is its Hessian with respect to z, times P:

    cross_entropy          -sum_c t_c log q_c, q = softmax(z)               S = diag(q) - q q'
    binary_cross_entropy   -sum_c t_c log q_c + (1 - t_c) log(1 - q_c),     S = diag(q (1 - q))
                           q = sigmoid(z)
    squared_error          1/2 sum_c (z_c - t_c)^2                          S = 1

S does not depend on the targets. Positions do not share a term, so neither do they share curvature.
Targets are labels (one-hot), or what the float network itself answers. In the latter case the loss
is at its minimum and its growth is the Kullback-Leibler divergence from the float network.

`choose_loss` takes cross-entropy where an output has more than one channel and the squared error of
a single channel; a network that ends in a sigmoid has binary cross-entropy. Of networks that end in
a softmax or a sigmoid, z is what goes into it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

from tvmquant.errors import DataError, SensitivityError
from tvmquant.sensitivity.structure import SIGMOID, SOFTMAX

LOSSES: Final = ("auto", "cross_entropy", "binary_cross_entropy", "squared_error")

# Probabilities are raised to these, so that logarithms and their second derivatives stay finite.
LEAST_SOFTMAX: Final = 1e-12
LEAST_SIGMOID: Final = 1e-6


class Loss(ABC):
    """The loss of one output; see the module's description."""

    name: str

    def __init__(self, end: str = "") -> None:
        self.end = end

    def values(self, output: Tensor) -> Tensor:
        """Return z of shape (N, C, P)."""
        z = output.unsqueeze(1) if output.ndim == 1 else output
        z = z.flatten(2) if z.ndim > 2 else z.unsqueeze(2)
        if self.end == SOFTMAX:
            return z.clamp_min(LEAST_SOFTMAX).log()
        if self.end == SIGMOID:
            return z.clamp(LEAST_SIGMOID, 1 - LEAST_SIGMOID).logit()
        return z

    @abstractmethod
    def answers(self, z: Tensor) -> Tensor:
        """Return the mean that the network predicts, as z: the targets without labels."""

    @abstractmethod
    def value(self, z: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, averaged over items and positions."""

    @abstractmethod
    def root(self, z: Tensor, signs: Tensor) -> Tensor:
        """Return ``u = L signs`` with ``L L' = S``, so that ``E u u' = S`` for random signs."""

    def slope(self, z: Tensor, targets: Tensor) -> Tensor:
        """Return the derivative of an item's loss with respect to its z, without gradient."""
        return (self.answers(z) - targets) / z.shape[2]

    def probe(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Draw u with ``E u u'`` the Hessian of each item's loss with respect to its z."""
        signs = random_signs(z, generator)
        return self.root(z.detach(), signs) / math.sqrt(z.shape[2])

    def targets(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Return what the loss compares with, of the shape of z.

        Raises
        ------
        DataError
            When labels do not fit the output.
        """
        if labels is None:
            return self.answers(z)
        if self.name != "cross_entropy" or z.shape[2] != 1:
            raise DataError(
                f"labels do not fit an output with the loss {self.name} and {z.shape[2]} positions "
                "for each item, only one row of class scores; leave out labels to use the float "
                "network's own predictions"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= z.shape[1]:
            raise DataError(
                f"labels {int(labels.min())}..{int(labels.max())} do not fit a model of "
                f"{z.shape[1]} classes; pass data without labels, or labels of this model"
            )
        return F.one_hot(labels, z.shape[1]).to(z.dtype).unsqueeze(2)


class CrossEntropy(Loss):
    """Of classes along axis 1."""

    name = "cross_entropy"

    def answers(self, z: Tensor) -> Tensor:
        """Return probabilities."""
        return z.detach().softmax(1)

    def value(self, z: Tensor, targets: Tensor) -> Tensor:
        """Return nats."""
        return -(targets * z.log_softmax(1)).sum(1).mean()

    def root(self, z: Tensor, signs: Tensor) -> Tensor:
        """Apply ``L = diag(sqrt q) - q sqrt(q)'``; ``L L' = S`` since the q sum up to one."""
        q = z.softmax(1)
        scaled = q.sqrt() * signs
        return scaled - q * scaled.sum(1, keepdim=True)


class BinaryCrossEntropy(Loss):
    """Of independent yes-or-no answers."""

    name = "binary_cross_entropy"

    def answers(self, z: Tensor) -> Tensor:
        """Return probabilities."""
        return z.detach().sigmoid()

    def value(self, z: Tensor, targets: Tensor) -> Tensor:
        """Return nats, summed over the channels."""
        losses = F.binary_cross_entropy_with_logits(z, targets, reduction="none")
        return losses.sum(1).mean()

    def root(self, z: Tensor, signs: Tensor) -> Tensor:
        """Apply ``L = diag(sqrt(q (1 - q)))``."""
        return (z.sigmoid() * (-z).sigmoid()).sqrt() * signs


class SquaredError(Loss):
    """Half the squared error of real values."""

    name = "squared_error"

    def answers(self, z: Tensor) -> Tensor:
        """Return the values."""
        return z.detach()

    def value(self, z: Tensor, targets: Tensor) -> Tensor:
        """Return half the squared error, summed over the channels."""
        return 0.5 * (z - targets).square().sum(1).mean()

    def root(self, _z: Tensor, signs: Tensor) -> Tensor:
        """Apply ``L = 1``."""
        return signs


_BY_NAME: Final[dict[str, type[Loss]]] = {
    cls.name: cls for cls in (CrossEntropy, BinaryCrossEntropy, SquaredError)
}


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw -1 or 1 for every element of a tensor (Rademacher)."""
    bits = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return bits.to(like.dtype).mul_(2).sub_(1)


def check_loss(name: str) -> None:
    """Raise `SensitivityError` unless a loss exists."""
    if name not in LOSSES:
        raise SensitivityError(f"loss {name!r} is unknown; expected one of {', '.join(LOSSES)}")


def choose_loss(name: str, end: str, output: Tensor) -> Loss:
    """Return the loss of an output.

    Parameters
    ----------
    name : str
        One of `LOSSES`.
    end : str
        The operator that computes the output; see `tvmquant.sensitivity.structure`.
    output : tensor (N, ...)
    """
    if name == "auto":
        single = output.ndim == 1 or output.shape[1] == 1
        name = "squared_error" if single else "cross_entropy"
        if end == SIGMOID:
            name = "binary_cross_entropy"
    links = {"cross_entropy": SOFTMAX, "binary_cross_entropy": SIGMOID}
    return _BY_NAME[name](end if links.get(name) == end else "")
