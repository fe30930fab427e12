"""Weights that are drawn to levels, and outputs that go over to them."""

import numpy as np
import torch

from tests.tvmquant.training import small
from tvmquant.bit_choice import BitChoice
from tvmquant.layers import quantizable_layers
from tvmquant.training import Recipe, train
from tvmquant.training.affine import AffineCombination
from tvmquant.training.method import Batch
from tvmquant.training.proximal import Proximal, drawn
from tvmquant.twin import Twin


def test_weights_are_drawn_and_stop_at_their_levels() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(0.0, 1.0, 200)
    level = np.round(weight)
    by = 0.2
    distance = weight - level
    expected = level + np.sign(distance) * np.maximum(np.abs(distance) - by, 0.0)
    found = drawn(torch.from_numpy(weight), torch.from_numpy(level), by)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def _trained(graph, out, monkeypatch, method, name, changes):
    """Train, and note the blend of weights and of activations in every step."""
    seen = []
    one_pass = method.one_pass

    def noted(self, batch: Batch):
        seen.append((batch.done, {q.per_item: q.blend for q in self.quantizers}))
        return one_pass(self, batch)

    monkeypatch.setattr(method, "one_pass", noted)
    choices = {layer.id: BitChoice.parse("w3a4") for layer in quantizable_layers(graph)}
    recipe = Recipe.read(name, {"epochs": 2, "batch_size": 16, **changes})
    return train(graph, small.data(), recipe, out=out, choices=choices), seen


def test_weights_end_as_their_levels(graph, tmp_path, monkeypatch) -> None:
    trained, seen = _trained(
        graph, tmp_path, monkeypatch, Proximal, "proxquant", {"proximal.rate": 10.0}
    )
    assert [blends[False] for _, blends in seen] == [float(done >= 0.67) for done, _ in seen]
    assert all(blends[True] == 1.0 for _, blends in seen)
    twin = Twin(trained.graph.module, mode="quantized")
    for layer, edge in twin.weight_edges.items():
        weight = twin.weights[layer]
        assert torch.equal(twin.quantizers[edge](weight), weight), layer


def test_outputs_go_over_to_the_quantized(graph, tmp_path, monkeypatch) -> None:
    changes = {"affine": {"until": 0.5, "activations": False}}
    _, seen = _trained(graph, tmp_path, monkeypatch, AffineCombination, "affine", changes)
    assert [blends[False] for _, blends in seen] == [min(done / 0.5, 1.0) for done, _ in seen]
    assert all(blends[True] == 1.0 for _, blends in seen)
