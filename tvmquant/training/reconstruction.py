"""Round weights so that outputs of layers or blocks, not the weights, stay near.

Of a weight ``w = s (floor(w / s) + r)``, r is 0 or 1: whether it is rounded up. For each block in
order, of which a layer alone is the smallest, r is found that minimises the squared error of the
block's output on a few items, whose inputs are those of the network quantized so far. While it is
searched r is a number between (`training.soft_rounding`), which a penalty drives to one of its
ends.

References: Nagel et al. (2020), "Up or Down? Adaptive Rounding for Post-Training Quantization";
Li et al. (2021), "BRECQ" (blocks, errors weighted by the diagonal of the Fisher information); Wei
et al. (2022), "QDrop". The Fisher information here is that of what the float network predicts
(`tvmquant.sensitivity`, equation 2), its mean over the items; BRECQ's is each item's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tvmquant.errors import TrainingError
from tvmquant.graph import Graph
from tvmquant.progress import Progress
from tvmquant.reconstructed import Reconstructed, RoundedWeight
from tvmquant.training.checkpoint import Checkpoint
from tvmquant.training.items import Items, room
from tvmquant.training.output_fisher import output_fisher
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.recipe import Recipe
from tvmquant.training.sections import Quantizer, Reconstruction
from tvmquant.training.soft_rounding import FREE, SoftWeight, weighted_error
from tvmquant.twin import Twin
from tvmquant.twin.blocks import Block
from tvmquant.twin.quantizer_module import FakeQuantize, FakeSign

# Two weights of this magnitude and less are within any bound of pairs (`tvmquant.weight_pairs`).
MOST_UNBOUNDED: Final = 63


@dataclass(frozen=True)
class Kept:
    """Where what is done is kept, after every block, for a search that is interrupted.

    Parameters
    ----------
    path : Path
    identity : dict of str to str
        As of `Checkpoint`.
    """

    path: Path
    identity: dict[str, str]


def round_anew(
    annotated: Graph,
    model: str,
    items: Items,
    recipe: Recipe,
    folder: Path,
    kept: Kept | None = None,
    progress: Progress | None = None,
    layers: Collection[str] | None = None,
) -> Reconstructed:
    """Round the narrow weights of a calibrated graph anew.

    Parameters
    ----------
    annotated : Graph
        Level L1, calibrated, without bounded pairs of what is narrow (`apply_calibration`).
    model : str
        Fingerprint of the float graph.
    items : Items
        Labels are not used.
    recipe : Recipe
        With a reconstruction; ``batch_size`` and ``seed`` are those of its steps.
    folder : Path
        Where a file without a name holds what is too much for memory.
    kept : Kept, optional
        A checkpoint, from which this goes on.
    progress : callable, optional
        Receives the blocks done and their number.
    layers : collection of str, optional
        Only these, by the names of their ONNX nodes.

    Raises
    ------
    TrainingError
        When no weight is narrow, or the items are too few for a batch that the model fixes, or too
        many for memory and disk.
    """
    how = recipe.reconstruction
    assert how is not None
    exact, rounded = Twin(annotated.module), Twin(annotated.module, mode="quantized")
    narrow = [n for n in narrow_layers(rounded, how) if layers is None or n in layers]
    if not narrow:
        raise TrainingError(nothing_narrow(annotated.name, how.most_bits))
    used, size = _whole_batches(annotated, items, recipe)
    exact.requires_grad_(False)
    rounded.requires_grad_(False)
    search = _Search(exact, rounded, narrow, used, size, recipe, how, folder)
    blocks = [b for b in rounded.blocks(widest=how.blocks) if set(b.layers) & set(narrow)]
    checkpoint = None
    if kept is not None:
        checkpoint = Checkpoint(kept.path, kept.identity, {"twin": rounded})
    done = [] if checkpoint is None else checkpoint.load()
    importance = (
        output_fisher(exact, annotated, blocks[len(done) :], used, size, recipe.seed)
        if how.fisher
        else {}
    )
    for block in blocks[len(done) :]:
        done.append(search.block(block, importance.get(block.output)))
        if checkpoint is not None:
            checkpoint.save(done)
        if progress is not None:
            progress(len(done), len(blocks))
    errors = {layer: found for b, found in zip(blocks, done, strict=True) for layer in b.layers}
    of_narrow = {name: errors[name] for name in narrow}
    return _record(exact, rounded, of_narrow, model, len(used))


def nothing_narrow(model: str, most_bits: int) -> str:
    """Return what a user is told whose network has nothing to reconstruct."""
    return (
        f"{model}: nothing to reconstruct: no layer has weights of 2 to {most_bits} bits; choose "
        "narrower ones, such as w4a8, or leave reconstruction out"
    )


def narrow_layers(twin: Twin, how: Reconstruction) -> list[str]:
    """Return the layers whose weights are to be rounded anew."""
    edges, quantizers = twin.weight_edges, twin.quantizers
    imported = {edge.id for edge in twin.edges if edge.fixed}
    return [
        name
        for name in twin.weights
        if edges[name] not in imported and _is_narrow(quantizers[edges[name]], how)
    ]


def _is_narrow(quantizer: torch.nn.Module, how: Reconstruction) -> bool:
    if not isinstance(quantizer, FakeQuantize) or isinstance(quantizer, FakeSign):
        return False
    most = int(quantizer.qmax)
    if quantizer.bounded and most > MOST_UNBOUNDED:
        return False
    return most < 1 << (how.most_bits - 1)


def _whole_batches(graph: Graph, items: Items, recipe: Recipe) -> tuple[Items, int]:
    """Return the items that are used, and the size of batches."""
    fixed = graph.fixed_batch()
    size = fixed or min(recipe.batch_size, len(items))
    if size > len(items):
        raise TrainingError(
            f"{graph.name}: takes {size} items at once, and there are {len(items)} to reconstruct "
            "with; give as many"
        )
    count = len(items) // size * size if fixed else len(items)
    return Items(items.inputs[:count], None), size


@dataclass(frozen=True)
class _Search:
    """The float network, and what is rounded so far."""

    exact: Twin
    rounded: Twin
    narrow: list[str]
    items: Items
    size: int
    recipe: Recipe
    how: Reconstruction
    folder: Path

    def block(self, block: Block, importance: Tensor | None) -> dict[str, float]:
        """Round the weights of a block in place; return the relative errors, in percent."""
        weights = {name: self._soft(name) for name in block.layers if name in self.narrow}
        steps = self._steps(block)
        given = self.exact if self.how.inputs == "float" else self.rounded
        inputs = self._values(given, block.input, block.name)
        floats = self._values(self.exact, block.input, block.name) if self.how.drop else inputs
        wanted = self._values(self.exact, block.output, block.name)
        power = self._mean(weighted_error(x, torch.zeros(()), importance)
                           for x in self._split(wanted)) or 1.0  # fmt: skip
        edges = self.rounded.weight_edges
        replaced = {edges[name]: weight for name, weight in weights.items()} | steps

        def error(x: Tensor, target: Tensor) -> Tensor:
            found = self.rounded.compute_block(block, x, replaced)
            return weighted_error(found, target, importance) / power

        def whole() -> float:
            with torch.no_grad():
                pairs = zip(self._split(inputs), self._split(wanted), strict=True)
                return 100.0 * self._mean(error(x, target) for x, target in pairs)

        for weight in weights.values():
            weight.hard = True
        before = whole()
        for weight in weights.values():
            weight.hard = False
        optimizer = self._optimizer(weights, steps)
        random = torch.Generator().manual_seed(self.recipe.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            for step in range(self.how.steps):
                chosen = self._chosen(random)
                x = inputs[chosen]
                if self.how.drop:
                    x = torch.where(torch.rand_like(x) < self.how.drop, floats[chosen], x)
                loss = error(x, wanted[chosen])
                done = (step / self.how.steps - FREE) / (1.0 - FREE)
                if done > 0.0:
                    loss = loss + sum(weight.penalty(done) for weight in weights.values())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                for quantizer in steps.values():
                    quantizer.keep_near()
        self._keep(weights, steps)
        return {"before": before, "after": whole()}

    def _split(self, values: Tensor) -> Iterator[Tensor]:
        return Items(values, None).batches(self.size)

    def _chosen(self, random: torch.Generator) -> Tensor:
        """Draw the items of a step."""
        return torch.randint(len(self.items), (self.size,), generator=random)

    def _mean(self, errors: Iterator[Tensor]) -> float:
        """Return the mean over all items of what is known of each batch."""
        sizes = [len(x) for x in self._split(self.items.inputs)]
        return sum(float(e) * n for e, n in zip(errors, sizes, strict=True)) / sum(sizes)

    def _soft(self, name: str) -> SoftWeight:
        quantizer = self.rounded.quantizers[self.rounded.weight_edges[name]]
        assert isinstance(quantizer, FakeQuantize)
        return SoftWeight(quantizer, self.rounded.weights[name].detach())

    def _steps(self, block: Block) -> dict[str, TrainedQuantizer]:
        """Return quantizers, by edge, of activations whose steps are learned or that are mixed."""
        if not self.how.step_lr and not self.how.drop:
            return {}
        rule = Quantizer(step="learned" if self.how.step_lr else "fixed", share=1.0 - self.how.drop)
        found = {}
        for step in block.steps:
            edge = step.edge
            if edge is None or not edge.is_activation or edge.fixed:
                continue
            given = self.rounded.quantizers[edge.id]
            if not isinstance(given, FakeQuantize) or isinstance(given, FakeSign):
                continue
            if given.scale.numel() == 1:
                found[edge.id] = TrainedQuantizer(given, rule, per_item=True)
        return found

    def _optimizer(
        self, weights: Mapping[str, SoftWeight], steps: Mapping[str, TrainedQuantizer]
    ) -> torch.optim.Optimizer:
        groups = [{"params": [weight.v for weight in weights.values()], "lr": self.how.lr}]
        if self.how.step_lr:
            groups += [
                {"params": [q.scale], "lr": self.how.step_lr * float(q.scale.detach())}
                for q in steps.values()
            ]
        return torch.optim.Adam(groups)

    def _keep(
        self, weights: Mapping[str, SoftWeight], steps: Mapping[str, TrainedQuantizer]
    ) -> None:
        """Let the network compute with what was found."""
        with torch.no_grad():
            for name, weight in weights.items():
                weight.hard = True
                present = self.rounded.weights[name]
                present.copy_(weight(present))
            for edge, quantizer in steps.items():
                given = self.rounded.quantizers[edge]
                assert isinstance(given, FakeQuantize)
                given.scale.copy_(quantizer.scale)

    def _values(self, twin: Twin, slot: int, name: str) -> Tensor:
        """Return a value within a network, of all items."""
        whole, start = None, 0
        with torch.no_grad():
            for x in self.items.batches(self.size):
                part = twin.value(slot, x).numpy()
                if whole is None:
                    whole = room(f"the values of {name}", len(self.items), part, self.folder)
                whole[start : start + len(part)] = part
                start += len(part)
        return torch.from_numpy(whole)


def _record(
    exact: Twin, rounded: Twin, errors: Mapping[str, Mapping[str, float]], model: str, count: int
) -> Reconstructed:
    """Return what a network computes with that the float network does not."""
    floats, quantizers = _plain(exact), _plain(rounded)
    weights = {}
    for name, found in errors.items():
        edge, weight = rounded.weight_edges[name], rounded.weights[name].detach()
        integers = torch.round(weight / quantizers[edge].steps_of(weight)).to(torch.int8)
        weights[edge] = RoundedWeight.of(integers.numpy(), **found)
    steps = {
        edge: float(quantizer.scale)
        for edge, quantizer in quantizers.items()
        if not torch.equal(floats[edge].scale, quantizer.scale)
    }
    return Reconstructed(model=model, count=count, weights=weights, steps=steps)


def _plain(twin: Twin) -> dict[str, FakeQuantize]:
    return {name: q for name, q in twin.quantizers.items() if isinstance(q, FakeQuantize)}
