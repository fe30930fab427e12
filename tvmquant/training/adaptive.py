"""One set of weights that serves several bit widths: CoQuant, and what it is compared with.

Every step computes the network at all widths, the widest first; gradients add up. A width has steps
of its own for every weight and activation, and perhaps normalizations of its own ("switchable",
Yu et al., 2019). Weights of all widths follow from the integers of the widest (`shared_weights`).

*Teachers.* Of the width ``b_k`` that among the wider ones is selected which has the least

    H(y_i) + lambda ||M_i - M_k||,     ||M_i - M_k|| = sum over layers of L1(W_i, W_k)           (1)

``H`` being the entropy of its probabilities, a mean over the batch, ``W_i`` a weight quantized at
``b_i``. lambda rises linearly from 0. The document does not say up to what: so far that both terms
are of equal size in the first epoch, or what the recipe has.

*Swapped blocks.* Each layer of a pass has the pass's width with the probability ``p``, else the
teacher's; layers that read the same activation are swapped together. ``p`` rises linearly to 1, of
earlier layers later:

    p_l = min(1, p_0 + (1 - p_0) t / T_l),     T_l = T (1 - l / 2 L)                             (2)

at the share ``t`` of the steps; ``p_0`` and ``T`` are the recipe's (``swap``, ``swap_until``).

Differences from the papers. AdaBits clamps and rescales weights, Any-Precision takes DoReFa's: here
both have the steps that calibration found. Bit-Mixer's first stage, at float, is the network that
is given; "before" and "here" of its normalizations are what a layer reads, and its weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from tvmquant.bit_choice import BitChoice
from tvmquant.errors import TrainingError
from tvmquant.formats import Uniform
from tvmquant.graph import Graph
from tvmquant.layers import uniform_choices
from tvmquant.levels import canonical
from tvmquant.quantization import calibrate
from tvmquant.training import distributed
from tvmquant.training.batch_norm import reestimate
from tvmquant.training.items import batches_of, seed_of
from tvmquant.training.method import Batch, Method
from tvmquant.training.method_sections import Adaptive
from tvmquant.training.objective import loss, top1
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.several_widths import NormsBy, SeveralWidths
from tvmquant.training.shared_weights import share_weights
from tvmquant.twin import Twin

if TYPE_CHECKING:
    from tvmquant.training.loop import Training

# Items that what is made in the end is calibrated on.
CALIBRATED: Final = 512
_NORMS: Final[Mapping[str, NormsBy | None]] = {
    "shared": None, "weight": "weight", "choice": "choice",
}  # fmt: skip


class AdaptiveWidths(Method):
    """All widths in every step.

    Attributes
    ----------
    uniform : list of BitChoice
        From the widest.
    widths : SeveralWidths
    """

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        # of the teachers that could be selected: entropies and distances added up
        self.state.register_buffer("sums", torch.zeros(2, dtype=torch.float64))

    @property
    def how(self) -> Adaptive:
        """The recipe's section."""
        found = self.recipe.adaptive
        assert found is not None
        return found

    def check(self) -> None:
        """Refuse choices of layers, which the recipe's widths are in place of.

        Raises
        ------
        TrainingError
        """
        if self.training.choices:
            raise TrainingError(
                f"the recipe trains all layers at {', '.join(map(str, self.how.widths))} bits "
                "(adaptive.widths); leave out choices (--choice, --plan)"
            )

    def put_in(self) -> list[TrainedQuantizer]:
        """Let quantizers of every width take the place of the twin's."""
        self.uniform = [
            BitChoice(Uniform(bits, signed=True), Uniform(bits, signed=False))
            for bits in sorted(self.how.widths, reverse=True)
        ]
        self._prepare(self.training.graph)
        return self.widths.quantizers

    def _prepare(self, graph: Graph) -> None:
        training = self.training
        calibration = training.calibration
        if graph is not training.graph:
            few = training.items.inputs[:: max(1, len(training.items) // CALIBRATED)][:CALIBRATED]
            folded = self.recipe.batch_norm == "folded"
            calibration = calibrate(graph, few.numpy(), fold_batch_norm=folded)
        self.widths = SeveralWidths(
            graph, calibration, self.recipe, self.uniform, norms_by=_NORMS[self.how.norms]
        )
        share_weights(self.widths)
        self.widths.set_widths(self.uniform[0])
        training.twin = self.widths.twin

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss and the logits of every pass."""
        widest, *others = self.uniform
        self.widths.set_widths(widest)
        yield self._widest(batch)
        if self.how.passes != "all":
            return
        if self.how.mixed:
            random = torch.Generator().manual_seed(seed_of(self.recipe, batch.epoch, batch.step))
            self._draw(random)
            yield self.one_pass(batch)
            return
        logits = [self._last]
        for number, choice in enumerate(others, 1):
            value, found = self._narrower(batch, number, choice, logits)
            logits.append(found.detach())
            yield value, found

    def _draw(self, random: torch.Generator) -> None:
        """Set the widths of all layers by chance; of those that have one, what norms take."""
        drawn = self.widths.drawn(random)
        norms = dict(drawn)
        for layer, able in self.widths.formats.items():
            if len(able.weights) == len(able.activations) == 1:
                norms[layer] = self.uniform[
                    int(torch.randint(len(self.uniform), (), generator=random))
                ]
        self.widths.set_widths(drawn, norms)

    def _widest(self, batch: Batch) -> tuple[Tensor, Tensor]:
        twin, objective = self.training.twin, self.recipe.objective
        if self.how.passes == "float":
            twin.mode = "float"
        try:
            value, logits = self.one_pass(batch)
        finally:
            twin.mode = "quantized"
        if self.how.teacher == "next" and objective.labels:  # nobody teaches the first
            value = loss(
                logits, batch.labels, None, objective.model_copy(update={"distillation": 0.0})
            )
        self._last = logits.detach()
        return value, logits

    def _narrower(
        self, batch: Batch, number: int, choice: BitChoice, logits: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits of a width; ``logits`` are those of the wider ones."""
        objective = self.recipe.objective
        if self.how.teacher == "objective":
            self.widths.set_widths(choice)
            return self.one_pass(batch)
        teacher = number - 1
        if self.how.teacher == "selected":
            teacher = self._selected(batch, choice, logits)
        else:
            objective = objective.model_copy(update={"labels": 0.0})
        if self.how.swap is None:
            self.widths.set_widths(choice)
        else:
            self._swap(batch, number, choice, self.uniform[teacher])
        found, _ = self.training.outputs(batch.inputs)
        return loss(found, batch.labels, logits[teacher], objective), found

    def _selected(self, batch: Batch, choice: BitChoice, logits: Sequence[Tensor]) -> int:
        """Return which of the wider widths teaches (1): the same one in all processes."""
        entropies = torch.tensor([distributed.mean(float(entropy(found))) for found in logits])
        with torch.no_grad():
            own = self._weights(choice)
            wider = self.uniform[: len(logits)]
            distances = torch.stack([distance(self._weights(each), own) for each in wider]).cpu()
        sums = self.state.get_buffer("sums")
        if batch.epoch == 0:
            sums += torch.stack([entropies.sum(), distances.sum()]).to(sums)
        return selected(entropies, distances, self.most_distance * batch.done)

    @property
    def most_distance(self) -> float:
        """Lambda in the end."""
        if self.how.most_distance is not None:
            return self.how.most_distance
        entropies, distances = self.state.get_buffer("sums").tolist()
        return entropies / distances if distances else 0.0

    def _weights(self, choice: BitChoice) -> list[Tensor]:
        """Return the weights that have several widths, quantized."""
        twin, found = self.widths.twin, []
        for layer, edge in self.widths.weight_edges.items():
            if (switched := self.widths.switched.get(edge)) is not None:
                found.append(switched.by_format[choice.weight.name](twin.weights[layer]))
        return found

    def _swap(self, batch: Batch, number: int, own: BitChoice, teacher: BitChoice) -> None:
        """Set the width of each layer, its own or the teacher's (2)."""
        assert self.how.swap is not None
        layers = self.widths.layers
        groups = list(dict.fromkeys(layer.group for layer in layers))
        chances = keeping(self.how.swap, self.how.swap_until, batch.done, len(groups))
        random = torch.Generator().manual_seed(
            seed_of(self.recipe, batch.epoch, batch.step, number)
        )
        drawn = torch.rand(len(groups), generator=random).tolist()
        keeps = {g: d < p for g, d, p in zip(groups, drawn, chances, strict=True)}
        taken = [uniform_choices(layers, choice) for choice in (own, teacher)]
        self.widths.set_widths(
            {layer.id: taken[not keeps[layer.group]][layer.id] for layer in layers},
            norms={layer.id: own if keeps[layer.group] else teacher for layer in layers},
        )

    def learned(self) -> dict[str, float]:
        """Return lambda, where teachers are selected."""
        return {"most_distance": self.most_distance} if self.how.teacher == "selected" else {}

    def finish(self) -> None:
        """Make the widths that were not computed of what was trained, and find statistics anew."""
        if self.how.passes != "all":
            self._prepare(self._float_network())
        if not self.how.reestimate:
            return
        for choice in self.uniform:
            self.widths.set_widths(choice)
            batches = batches_of(self.training.items, self.recipe, 0)
            few = itertools.islice(batches, self.how.reestimate)
            reestimate(self.widths.twin, (inputs for inputs, _ in few))

    def _float_network(self) -> Graph:
        """Return the network (L0) with the numbers that were trained."""
        start = canonical(self.training.graph, fold_batch_norm=self.recipe.batch_norm == "folded")
        network, trained = Twin(start.module), self.training.twin.constants
        network.substitutes = {
            name: trained[name].detach() for name in network.constants if name in trained
        }
        return start.with_module(network.write_back())

    def validated(self) -> dict[str, float]:
        """Return ``top1`` of the integers at every width, in percent, and their mean."""
        items = self.training.validation
        assert items is not None
        found = {
            f"top1_w{bits}": top1(Twin(graph.module, mode="exact"), items)
            for bits, graph in self.written_widths().items()
        }
        return {"top1": sum(found.values()) / len(found), **found}

    def written(self) -> Graph:
        """Return the network at the widest."""
        return self.widths.graph_of(self.uniform[0])

    def written_widths(self) -> dict[int, Graph]:
        """Return the network at every width."""
        return {choice.weight.bits: self.widths.graph_of(choice) for choice in self.uniform}


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of the probabilities of items."""
    logs = functional.log_softmax(logits, 1)
    return -(logs.exp() * logs).sum(1).mean()


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the sum over layers of the L1 distance of weights."""
    return torch.stack([(a - b).abs().sum() for a, b in zip(first, second, strict=True)]).sum()


def selected(entropies: Tensor, distances: Tensor, weight: float) -> int:
    """Return which teacher has the least (1)."""
    return int(torch.argmin(entropies + weight * distances))


def keeping(first: float, until: float, done: float, layers: int) -> list[float]:
    """Return the probability of each layer to have the width of its pass (2)."""
    ends = (until * (1.0 - layer / (2.0 * layers)) for layer in range(layers))
    return [min(1.0, first + (1.0 - first) * done / end) for end in ends]
