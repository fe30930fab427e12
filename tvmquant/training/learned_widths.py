"""Bit widths that are learned: of every output channel of weights, of every activation (FDQMP).

Each has a step and a range, from which its bits follow (`width_quantizer`). To the loss is added
``p max(S / T - 1, 0)^2`` of weights and of activations each, ``S`` being their bits and ``T`` the
target, so that the network pays for what it keeps. Phases of a recipe say what counts
(`method_sections.Widths`). In the last, widths are fixed: those wanted, all moved alike up or down
until the targets are met to one channel, or tensor (`width_targets`).

The document behind this has neither targets nor numbers. The authors' code penalises
``1e-4 (S - T)^2``, in kilobytes, which depends on the network's size; it gives steps and ranges a
hundredth of the learning rate, moves them every 20th step, and clips their gradients to +- the step
as here; its widths move until the end.

What ships has the width of a layer's widest channel as its format, and integers that fit their
channel's (`WeightQuantizer`); the library stores each channel at its own
(`tvmquant.passes.store_weights`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from tvmquant import formats
from tvmquant.errors import TrainingError
from tvmquant.formats import MOST_BITS
from tvmquant.training.items import steps_of
from tvmquant.training.method import Batch, Method
from tvmquant.training.method_sections import Widths
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.recipe import Recipe
from tvmquant.training.width_quantizer import WidthQuantizer
from tvmquant.training.width_targets import Part, Sizes
from tvmquant.twin.program import Edge

if TYPE_CHECKING:
    from tvmquant.training.loop import Training

# Share of the penalty in the first step of its rise.
FIRST: Final = 0.01


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
        steps = batch.epoch * steps_of(self.training.items, self.recipe) + batch.step
        moves = (steps + 1) % _widths(self.recipe).every == 0
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
