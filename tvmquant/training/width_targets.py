"""Sizes of tensors whose bit widths are learned, and whole widths that keep them under a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tvmquant.formats import LEAST_BITS, MOST_BITS
from tvmquant.training.width_quantizer import WidthQuantizer


@dataclass(frozen=True)
class Part:
    """Tensors that share their widths: a weight, or the activations of one group (`twin.Edge`).

    Parameters
    ----------
    quantizers : tuple of WidthQuantizer
    values : int
        Numbers that have each width: of one channel, or of all the tensors for one item.
    """

    quantizers: tuple[WidthQuantizer, ...]
    values: int

    def bits(self) -> Tensor:
        """Return the widths, with gradients."""
        return torch.stack([q.bits() for q in self.quantizers]).amax(0)

    def wanted(self) -> Tensor:
        """Return the bits that are asked for, before they are rounded up."""
        return torch.stack([q.wanted() for q in self.quantizers]).amax(0)


@dataclass(frozen=True)
class Sizes:
    """What is under one target.

    Parameters
    ----------
    parts : tuple of Part
    values : int
        Numbers of all tensors, those included whose widths are not learned.
    others : int
        Bits of the latter.
    """

    parts: tuple[Part, ...]
    values: int
    others: int

    def share(self) -> Tensor:
        """Return the size, as a share of that at 8 bits, with gradients."""
        bits = [part.values * part.bits().sum() for part in self.parts]
        return (torch.stack(bits).sum() + self.others) / (MOST_BITS * self.values)

    def fix(self, target: float, least: int) -> None:
        """Choose whole widths that take at most this share of 8 bits."""
        wanted = [part.wanted().detach().cpu() for part in self.parts]
        values = np.repeat([p.values for p in self.parts], [len(each) for each in wanted])
        budget = target * MOST_BITS * self.values - self.others
        widths = whole_widths(torch.cat(wanted).numpy(), values, budget, least)
        found = torch.split(torch.from_numpy(widths), [len(each) for each in wanted])
        for part, chosen in zip(self.parts, found, strict=True):
            for quantizer in part.quantizers:
                quantizer.fix(chosen)


def whole_widths(
    wanted: npt.NDArray[np.floating[Any]], values: npt.NDArray[np.integer[Any]], budget: float,
    least: int = LEAST_BITS,
) -> npt.NDArray[np.int32]:  # fmt: skip
    """Return whole widths for those that are wanted, all moved alike until a budget is used up.

    Parameters
    ----------
    wanted : float array (K,)
        In bits.
    values : int array (K,)
        How many numbers have each.
    budget : float
        Bits of all; at least those at the least width.
    least : int

    Returns
    -------
    int32 array (K,)
        Of `least` to 8: ``ceil(wanted - t)``, of the least t that the budget allows; then one more
        where what is left of it allows that, those first that lack most.
    """

    def moved(by: float) -> npt.NDArray[np.int32]:
        whole = np.ceil(wanted - by - 1e-6)
        return np.asarray(np.clip(whole, least, MOST_BITS).astype(np.int32))

    # moving by these changes a width
    moves = np.unique(wanted[:, None] - np.arange(least, MOST_BITS + 1))
    low, high = 0, len(moves) - 1
    while low < high:
        middle = (low + high) // 2
        fits = int(moved(moves[middle]) @ values) <= budget
        low, high = (low, middle) if fits else (middle + 1, high)
    widths = moved(moves[low])
    left = budget - int(widths @ values)
    for index in np.argsort(widths - wanted, kind="stable"):
        if widths[index] < MOST_BITS and values[index] <= left:
            widths[index] += 1
            left -= int(values[index])
    return widths
