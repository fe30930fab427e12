"""Bit widths that are learned: of every output channel of weights, of every activation (FDQMP).

Each has a step ``d`` and a range ``q``, and ``y = d round(clip(x, -q, q) / d)``; of activations the
range is from 0, or from below it in the proportion that calibration found. It takes

    B = ceil(log2(round(q / d) + 1)) + 1

bits, one less without a sign. To the loss is added ``p max(S / T - 1, 0)^2`` of weights and of
activations each, ``S`` being their bits and ``T`` the target, so that the network pays for what it
keeps; ``round`` and ``ceil`` pass gradients. Phases of a recipe say what counts
(`method_sections.Widths`). In the last, widths are fixed: those wanted, all moved alike up or down
until the targets are met to one channel, or tensor.

The document behind this has neither targets nor numbers. The authors' code penalises
``1e-4 (S - T)^2``, in kilobytes, which depends on the network's size; it gives ``d`` and ``q`` a
hundredth of the learning rate, moves them every 20th step, and clips their gradients to ``+-d`` as
here; its widths move until the end.

What ships has the width of a layer's widest channel as its format, and integers that fit their
channel's (`WeightQuantizer`); the library stores each channel at its own
(`tvmquant.passes.store_weights`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tvmquant import formats
from tvmquant.errors import TrainingError
from tvmquant.formats import LEAST_BITS, MOST_BITS
from tvmquant.training.method import Batch, Method
from tvmquant.training.method_sections import Widths
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.recipe import Recipe
from tvmquant.training.rounding import rounded
from tvmquant.twin.program import Edge

if TYPE_CHECKING:
    from tvmquant.training.loop import Training

# Share of the penalty in the first step of its rise.
FIRST: Final = 0.01


class WidthQuantizer(TrainedQuantizer):
    """Round to steps and within ranges that are learned.

    Parameters
    ----------
    given : TrainedQuantizer
        Of a weight with a scale per channel, or of an activation.
    least : int
        Bits that it keeps.

    Attributes
    ----------
    reach : float32 Parameter like scale
        ``q``: of weights the greatest magnitude, of activations the length of the range.
    widths : int32 tensor like scale, of an activation of shape (1,)
        0 while they are learned.
    """

    widths: Tensor
    first_reach: Tensor

    def __init__(self, given: TrainedQuantizer, least: int) -> None:
        super().__init__(given, given.rule, per_item=given.per_item)
        levels = int(given.qmax) if self.is_weight else int(given.qmax) - int(given.qmin)
        self.least = least
        # of activations, what of the range lies below 0
        self.below = float(given.zero_point - given.qmin) / levels
        self.register_buffer("first_reach", self.first * levels)
        self.reach = torch.nn.Parameter(self.first * levels)
        count = self.scale.numel() if self.is_weight else 1
        self.register_buffer("widths", torch.zeros(count, dtype=torch.int32))

    @property
    def is_weight(self) -> bool:
        """Whether it has a sign of its own, and levels alike on both sides of 0."""
        return not self.per_item

    @property
    def is_fixed(self) -> bool:
        """Whether widths are chosen."""
        return bool(self.widths.any())

    def levels(self, bits: Any) -> Any:
        """Return the greatest integer of a width, its sign apart."""
        return 2 ** (bits - int(self.is_weight)) - 1

    def wanted(self) -> Tensor:
        """Return the bits that steps and ranges ask for, before they are rounded up."""
        return torch.log2(self._ratio() + 1.0) + float(self.is_weight)

    def bits(self) -> Tensor:
        """Return the bits, like `widths`; their gradient is that of `wanted`."""
        if self.is_fixed:
            return self.widths.to(self.scale.dtype)
        whole = torch.log2(rounded(self._ratio()) + 1.0)
        found = torch.ceil(whole.detach() - 1e-4) - whole.detach() + whole
        return torch.clamp(found + float(self.is_weight), self.least, MOST_BITS)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest number of steps."""
        most = self.levels(self.widths) if self.is_fixed else self.reach / self.scale
        if self.is_weight:
            return -most, most
        if self.is_fixed:
            below = self._zero_point(most)
            return -below, most - below
        return -self.below * most, (1.0 - self.below) * most

    def fix(self, widths: Tensor) -> None:
        """Let widths be these; the ranges stay, steps follow."""
        with torch.no_grad():
            self.widths.copy_(widths)
            self.scale.copy_(self.reach / self.levels(self.widths))
            self.first.copy_(self.scale)
        self.reach.requires_grad_(False)

    def settle(self) -> None:
        """Bring what is written back up to date."""
        with torch.no_grad():
            most = self.levels(self.widths) if self.is_fixed else self.reach / self.scale
            whole = int(torch.round(most.max()))
            self.qmax.fill_(whole)
            self.qmin.fill_(-whole if self.is_weight else 0)
            if not self.is_weight:
                self.zero_point.fill_(int(self._zero_point(torch.tensor(float(whole)))))

    def written(self, weight: Tensor) -> Tensor:
        """Return a weight in whole numbers of its steps, within its channels' ranges."""
        with torch.no_grad():
            found: Tensor = self(weight)
            return found

    def keep_near(self) -> None:
        """Keep steps and ranges near the first ones, and to widths that there are."""
        super().keep_near()
        if self.is_fixed:
            return
        with torch.no_grad():
            near = self.kept_near(self.reach, self.first_reach)
            ends = (self.scale * self.levels(bits) for bits in (self.least, MOST_BITS))
            self.reach.copy_(torch.clamp(near, *ends))

    def _ratio(self) -> Tensor:
        """Return range over step, the same for all steps of an activation."""
        ratio = self.reach / self.scale
        return ratio if self.is_weight else ratio.mean().reshape(1)

    def _zero_point(self, most: Tensor) -> Tensor:
        return torch.round(self.below * most)

    def _factor(self, x: Tensor) -> Tensor | float:
        if not self.is_fixed:
            return 1.0
        return torch.rsqrt(self._sharing(x) * self.levels(self.widths).to(x.dtype))


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


class LearnedWidths(Method):
    """Learn widths under targets of size.

    Parameters
    ----------
    training : Training

    Attributes
    ----------
    sizes : dict of str to Sizes
        Of ``weights`` and ``activations``.
    """

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        twin = training.twin
        weights = {twin.weight_edges[layer]: twin.weights[layer].numel()
                   for layer in twin.weight_edges}  # fmt: skip
        self.sizes = {
            name: self._sizes(values)
            for name, values in (("weights", weights), ("activations", _activations(training)))
        }

    def check(self) -> None:
        """Refuse targets that the least widths miss.

        Raises
        ------
        TrainingError
        """
        how = _widths(self.recipe)
        for name, sizes in self.sizes.items():
            if not sizes.parts:
                raise TrainingError(f"widths: none of the model's {name} has a width to learn")
            learned = sum(part.values * part.bits().numel() for part in sizes.parts)
            least = (learned * how.least + sizes.others) / (MOST_BITS * sizes.values)
            if least > getattr(how, name):
                raise TrainingError(
                    f"widths.{name}: {getattr(how, name):g} of their bytes at {MOST_BITS} bits; at "
                    f"{how.least} bits (widths.least) they take {least:.3f}"
                )

    def begin(self, recipe: Recipe) -> None:
        """Begin a phase; in the last kind, choose widths."""
        super().begin(recipe)
        if _widths(recipe).stage == "tune":
            self._fix()

    def groups(self) -> list[dict[str, Any]]:
        """Return the ranges, which learn as fast as the steps."""
        reaches = [q.reach for q in self._learned() if not q.is_fixed]
        return [{"params": reaches, "lr": self.recipe.optimizer.step_lr}]

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the objective with what sizes beyond their targets cost."""
        value, logits = self.one_pass(batch)
        how = _widths(self.recipe)
        if how.stage == "learn":
            share = min(1.0, FIRST + (1.0 - FIRST) * batch.done / how.rise)
            for name, sizes in self.sizes.items():
                excess = torch.relu(sizes.share() / getattr(how, name) - 1.0)
                value = value + share * how.penalty * excess**2
        yield value, logits

    def before_step(self, batch: Batch) -> None:
        """Clip the gradients of steps and ranges to the steps; leave them out most of the time."""
        moves = (batch.step + 1) % _widths(self.recipe).every == 0
        for quantizer in self._learned():
            if quantizer.is_fixed:
                continue
            limit = quantizer.scale.detach()
            for parameter in (quantizer.scale, quantizer.reach):
                if parameter.grad is not None:
                    parameter.grad = torch.clamp(parameter.grad, -limit, limit) if moves else None

    def validated(self) -> dict[str, float]:
        """Return also the sizes, in percent of those at 8 bits."""
        self._settle()
        with torch.no_grad():
            found = {name: 100.0 * float(sizes.share()) for name, sizes in self.sizes.items()}
        return super().validated() | found

    def finish(self) -> None:
        """Choose widths, if no phase has."""
        self._fix()
        self._settle()

    def _learned(self) -> list[WidthQuantizer]:
        return [q for q in self.quantizers if isinstance(q, WidthQuantizer)]

    def _settle(self) -> None:
        for quantizer in self._learned():
            quantizer.settle()

    def _fix(self) -> None:
        how = _widths(self.recipe)
        if not any(quantizer.is_fixed for quantizer in self._learned()):
            for name, sizes in self.sizes.items():
                sizes.fix(getattr(how, name), how.least)

    def _sizes(self, values: Mapping[str, int]) -> Sizes:
        """Let quantizers of tensors of so many numbers, by the ids of their edges, learn widths."""
        twin, least = self.training.twin, _widths(self.recipe).least
        edges = {edge.id: edge for edge in twin.edges}
        grouped: dict[str, list[str]] = {}
        for name in values:
            grouped.setdefault(edges[name].group or name, []).append(name)
        parts, others = [], 0
        for names in grouped.values():
            given = [twin.quantizers[name] for name in names]
            size = sum(values[name] for name in names)
            if not all(_has_width(q, edges[n]) for q, n in zip(given, names, strict=True)):
                others += sum(values[n] * formats.parse(edges[n].format).bits for n in names)
                continue
            found = []
            for name, old in zip(names, given, strict=True):
                assert isinstance(old, TrainedQuantizer)
                found.append(WidthQuantizer(old, least))
                twin.replace_quantizer(name, found[-1])
                self.quantizers[[q is old for q in self.quantizers].index(True)] = found[-1]
            parts.append(Part(tuple(found), size // found[0].widths.numel()))
        return Sizes(tuple(parts), sum(values.values()), others)


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


def _widths(recipe: Recipe) -> Widths:
    assert recipe.widths is not None
    return recipe.widths


def _has_width(quantizer: torch.nn.Module, edge: Edge) -> bool:
    """Whether a quantizer is trained, of up to 8 bits, with steps of channels but not of groups."""
    held = formats.parse(edge.format)
    channels = isinstance(quantizer, TrainedQuantizer) and quantizer.scale.ndim == 1
    return channels and not held.group and held.bits <= MOST_BITS


def _activations(training: Training) -> dict[str, int]:
    """Return how many numbers an item has in each activation, but the results of the network."""
    twin = training.twin
    wanted = {
        edge.id
        for edge in twin.edges
        if edge.is_activation and formats.parse(edge.format).bits <= MOST_BITS
    }
    found: dict[str, int] = {}

    def observe(name: str, x: Tensor) -> None:
        if name in wanted:
            found[name] = x.numel()

    observed, twin.observe = twin.observe, observe
    with torch.inference_mode():
        twin(training.items.inputs[:1])
    twin.observe = observed
    return found
