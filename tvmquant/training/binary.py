"""Networks of one bit and of few values, trained.

Real numbers stand behind signs of weights; what a step moves are these. Signs have the gradients
that the papers give them (`tvmquant.nn.gradients`). What is written are the few values, and their
magnitudes, so that the library computes what the last forward pass did.
"""

from __future__ import annotations

from typing import Any

import torch
import tvm
from torch import Tensor

from tvmquant import formats
from tvmquant.errors import TrainingError
from tvmquant.formats import BINARY, UBINARY
from tvmquant.graph import Graph
from tvmquant.passes.keep_binary_sums import KeepBinarySums
from tvmquant.passes.split_weights import SplitWeights
from tvmquant.training.few_values import (
    FewValues,
    SignedWeight,
    SumOfSigns,
    TernaryWeight,
    TrainedSign,
    TwoScales,
)
from tvmquant.training.method import Batch, Method
from tvmquant.training.method_sections import Binarization
from tvmquant.training.objective import top1
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.recipe import Recipe
from tvmquant.twin import Twin
from tvmquant.twin.quantizer_module import FakeQuantize, FakeSign


class Binarized(Method):
    """One pass of a network, layers of which are binary."""

    def put_in(self) -> list[TrainedQuantizer]:
        """Let quantizers that are trained take the place of the twin's."""
        found = super().put_in()
        twin, how = self.training.twin, _section(self.recipe)
        self.signs: list[TrainedSign] = []
        # by the name of the layer
        self.weights: dict[str, FewValues] = {}
        layer_of = {edge: layer for layer, edge in twin.weight_edges.items()}
        for edge in twin.edges:
            given, layer = twin.quantizers[edge.id], layer_of.get(edge.id)
            held = formats.parse(edge.format)
            if layer is None and held == UBINARY and isinstance(given, FakeSign):
                self.signs.append(TrainedSign(given, how))
                twin.replace_quantizer(edge.id, self.signs[-1])
            elif layer is not None and isinstance(given, FakeQuantize):
                chosen = layer in self.training.binarized
                if chosen or held == BINARY:
                    kind = how.weights if chosen else "sign"
                    self.weights[layer] = _few_values(kind, given, how, twin.weights[layer])
                    twin.replace_quantizer(edge.id, self.weights[layer])
        return found

    def check(self) -> None:
        """Refuse phases that would change the network."""
        first = _section(self.recipe).structure()
        for phase in self.recipe.in_phases():
            for field, value in _section(phase).structure().items():
                if value != first[field]:
                    raise TrainingError(f"phases: binarization.{field} is the same in all phases")
        if _section(self.recipe.in_phases()[-1]).real_weights:
            raise TrainingError(
                "binarization.real_weights: of the last phase weights are signs, which ship"
            )

    def begin(self, recipe: Recipe) -> None:
        """Begin a phase."""
        super().begin(recipe)
        for signs in self.signs:
            signs.follow(_section(recipe))
        for weight in self.weights.values():
            weight.follow(_section(recipe))

    def one_pass(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the objective, and the logits, of the twin as it is."""
        value, logits = super().one_pass(batch)
        how = _section(self.recipe)
        if how.regularizer == "none" or how.real_weights:
            return value, logits
        return value + how.regularization * self._distances(how), logits

    def _distances(self, how: Binarization) -> Tensor:
        """Return the sum of the distances of weights from their few values (BNN+)."""
        total = torch.zeros((), device=next(self.training.twin.parameters()).device)
        for layer, quantizer in self.weights.items():
            rows = self.training.twin.weights[layer].movedim(quantizer.axis, 0)
            distance = quantizer.made(rows).detach().abs() - rows.abs()
            total = total + (distance.abs() if how.regularizer == "l1" else distance.square()).sum()
        return total

    def after_step(self, batch: Batch) -> None:
        """Keep numbers where they make sense."""
        super().after_step(batch)
        for layer, quantizer in self.weights.items():
            quantizer.limit()
            if _section(self.recipe).clip:
                with torch.no_grad():
                    self.training.twin.weights[layer].clamp_(-1.0, 1.0)

    def validated(self) -> dict[str, float]:
        """Return ``top1`` of the exact twin; nothing, where real weights are no integers yet."""
        if _section(self.recipe).real_weights:
            return {}
        if not self._terms():
            return super().validated()
        assert self.training.validation is not None
        return {"top1": top1(Twin(self.written().module, mode="exact"), self.training.validation)}

    def written(self) -> Graph:
        """Return the network as it is trained, sums of signs as layers of one bit each."""
        graph, terms = super().written(), self._terms()
        if not terms:
            return graph
        split = tvm.transform.Sequential([SplitWeights(terms), KeepBinarySums()])
        return graph.with_module(split(graph.module))

    def _terms(self) -> dict[str, list[Any]]:
        """Return what the weights of layers are sums of, by the names of these."""
        weights = self.training.twin.weights
        return {
            layer: [
                term.movedim(0, quantizer.axis).cpu().numpy()
                for term in quantizer.terms(weights[layer].detach().movedim(quantizer.axis, 0))
            ]
            for layer, quantizer in self.weights.items()
            if isinstance(quantizer, SumOfSigns)
        }


def _section(recipe: Recipe) -> Binarization:
    assert recipe.binarization is not None
    return recipe.binarization


def _few_values(kind: str, given: FakeQuantize, how: Binarization, weight: Tensor) -> FewValues:
    if kind == "two_scales":
        return TwoScales(given, how, weight.detach())
    if kind == "ternary":
        return TernaryWeight(given, how)
    return SumOfSigns(given, how) if kind == "sum" else SignedWeight(given, how)
