"""What each layer is worth, learned: the steps of its quantizers at every width.

One network is trained at all widths together, each with a step of its own for every weight and for
every activation and with normalizations of its own. In every step all layers are at the first
width, at the second, and so on, and once at widths drawn for each; gradients add up, and are
clipped.
With ``s`` the steps that are learned, a layer at ``b_w`` and ``b_a`` bits costs

    Omega = s_a(b_a) + alpha s_w(b_w)                                                           (1)

A width whose step is below that of the next wider one is an outlier, and excluded. Steps begin with
``max |mean +- 3 std| / 2^(b - 1)`` of a weight and ``2 E|x| / sqrt(hi)`` of an activation of the
float network, ``hi`` being its greatest distance from zero in steps.

Reference: Tang et al., Mixed-Precision Neural Network Quantization via Learned Layer-wise
Importance, 2022. alpha, the rule of outliers, the first steps and the normalizations of each width
are those of the authors' code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from tvmquant.bit_choice import BitChoice
from tvmquant.formats import MOST_BITS, Format, Uniform
from tvmquant.graph import Graph
from tvmquant.sensitivity import LayerSensitivity, Sensitivity
from tvmquant.sensitivity.loss import CrossEntropy
from tvmquant.training.items import Items, seed_of
from tvmquant.training.method import Batch, Method
from tvmquant.training.objective import top1
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.several_widths import SeveralWidths
from tvmquant.twin import Twin

METHOD: Final = "limpq"
# Items that the first steps of activations follow from.
MEASURED: Final = 128


class LearnedImportance(Method):
    """All widths, and one pass at drawn ones, in every step."""

    def put_in(self) -> list[TrainedQuantizer]:
        """Let quantizers of every width take the place of the twin's."""
        how, training = self.recipe.importance, self.training
        assert how is not None
        self.how = how
        self.uniform = [
            BitChoice(Uniform(bits, signed=True), Uniform(bits, signed=False))
            for bits in sorted({*how.widths, MOST_BITS}, reverse=True)
        ]
        self.widths = SeveralWidths(
            training.graph, training.calibration, self.recipe, self.uniform,
            norms_by="weight", per_tensor=True,
        )  # fmt: skip
        training.twin = self.widths.twin
        begin_with_statistics(self.widths, training.items)
        return self.widths.quantizers

    def check(self) -> None:
        """Refuse choices that are not trained."""
        self.widths.set_widths(self.training.choices)

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss and the logits of each width, and of drawn ones."""
        random = torch.Generator().manual_seed(seed_of(self.recipe, batch.epoch, batch.step))
        for choice in self.uniform:
            self.widths.set_widths(choice)
            yield self.one_pass(batch)
        self.widths.set_widths(self.widths.drawn(random))
        yield self.one_pass(batch)

    def before_step(self, batch: Batch) -> None:
        """Clip gradients."""
        nn.utils.clip_grad_value_(self.training.twin.parameters(), self.how.most_gradient)

    def validated(self) -> dict[str, float]:
        """Return ``top1`` of the integers at the choices that were given, in percent."""
        assert self.training.validation is not None
        return {"top1": top1(Twin(self.written().module, mode="exact"), self.training.validation)}

    def written(self) -> Graph:
        """Return the network at the choices that were given."""
        return self.widths.graph_of(self.training.choices)

    def sensitivity(self) -> Sensitivity:
        """Return what each choice costs each layer (1)."""
        training, widths = self.training, self.widths
        layers: dict[str, LayerSensitivity] = {}
        perturbation: dict[str, dict[str, float]] = {}
        excluded: dict[str, list[str]] = {}
        for layer in widths.layers:
            tied = [other for other in widths.layers if other.group == layer.group]
            edges = list(dict.fromkeys(edge for other in tied for edge in other.edges))
            able = widths.formats[layer.id]
            weight = {
                held: self.how.alpha * widths.step(widths.weight_edges[layer.id], held)
                for held in able.weights
            }
            # what layers share is counted once in a sum over layers
            share = 1.0 / (len(edges) * len(tied))
            activation = {
                held: share * math.fsum(widths.step(edge, held) for edge in edges)
                for held in able.activations
            }
            layers[layer.id] = LayerSensitivity(
                weight={held.name: value for held, value in weight.items()},
                activation={held.name: value for held, value in activation.items()},
            )
            out = outliers(weight) | outliers(activation)
            choices = [BitChoice(w, a) for w in weight for a in activation]
            perturbation[layer.id] = {
                str(c): weight[c.weight] + activation[c.activation] for c in choices
            }
            excluded[layer.id] = [str(c) for c in choices if {c.weight, c.activation} & out]
        return Sensitivity(
            method=METHOD, model=training.graph.fingerprint(), data=training.items.digest(),
            count=len(training.items), labelled=bool(self.recipe.objective.labels),
            losses=[CrossEntropy.name], probes=0, tolerance=1.0, relative_error=None,
            converged=True, layers=layers, perturbation=perturbation,
            excluded={layer: names for layer, names in excluded.items() if names},
        )  # fmt: skip


def outliers(steps: Mapping[Format, float]) -> set[Format]:
    """Return the formats whose step is below that of the next wider one."""
    order = sorted(steps, key=lambda held: held.bits, reverse=True)
    return {narrow for wide, narrow in itertools.pairwise(order) if steps[narrow] < steps[wide]}


def begin_with_statistics(widths: SeveralWidths, items: Items) -> None:
    """Set the first step of every weight and activation that has several widths.

    Parameters
    ----------
    widths : SeveralWidths
        With one step for each weight.
    items : Items
        `MEASURED` of them, evenly apart, say what activations are like.
    """
    means = _mean_magnitudes(widths.twin, items)
    layer_of = {edge: layer for layer, edge in widths.weight_edges.items()}
    for edge, switched in widths.switched.items():
        for quantizer in switched.by_format.children():
            if not isinstance(quantizer, TrainedQuantizer):
                continue
            if edge in layer_of:
                weight = widths.twin.weights[layer_of[edge]].detach()
                step = first_weight_step(weight, int(quantizer.qmax))
            else:
                zero = int(quantizer.zero_point)
                reach = max(int(quantizer.qmax) - zero, zero - int(quantizer.qmin))
                step = 2.0 * means[edge] / math.sqrt(reach)
            quantizer.begin_with(max(step, torch.finfo(torch.float32).tiny))


def first_weight_step(weight: Tensor, qmax: int) -> float:
    """Return ``max |mean +- 3 std| / 2^(b - 1)``, the levels being those from -qmax to qmax."""
    mean, spread = float(weight.mean()), 3.0 * float(weight.std())
    return max(abs(mean - spread), abs(mean + spread)) / (qmax + 1)


def _mean_magnitudes(twin: Twin, items: Items) -> dict[str, float]:
    """Return the mean magnitude of what each fake_quant is given by the float network."""
    step = max(1, len(items) // MEASURED)
    found: dict[str, float] = {}

    def observe(edge: str, x: Tensor) -> None:
        found[edge] = float(x.abs().mean())

    twin.mode, twin.observe = "float", observe
    try:
        with torch.no_grad():
            twin(items.inputs[::step][:MEASURED])
    finally:
        twin.mode, twin.observe = "quantized", None
    return found
