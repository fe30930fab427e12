import numpy as np
import pytest
import torch

from tests.tvmquant.training import small
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import TrainingError
from tvmquant.layers import quantizable_layers
from tvmquant.training import Recipe, train
from tvmquant.training.mapped_weights import IntervalMap, TanhMap
from tvmquant.twin import Twin

WEIGHT = np.random.default_rng(0).normal(0.0, 0.5, (4, 3, 2, 2))
REACH = np.array([0.6, 0.9, 1.1, 0.3]).reshape(4, 1, 1, 1)


def _map(kind):
    return kind(torch.from_numpy(WEIGHT), torch.from_numpy(REACH))


def test_a_tangent_keeps_the_greatest_weight() -> None:
    other = np.random.default_rng(1).normal(0.0, 1.0, WEIGHT.shape)
    expected = np.abs(WEIGHT).max() * np.tanh(other) / np.abs(np.tanh(other)).max()
    found = _map(TanhMap)(torch.from_numpy(other))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_an_interval_is_spread_over_all_levels() -> None:
    interval = _map(IntervalMap)
    weight = torch.from_numpy(WEIGHT)
    clipped = np.clip(WEIGHT, -REACH, REACH)
    np.testing.assert_allclose(interval(weight).detach(), clipped, rtol=0, atol=1e-7)
    with torch.no_grad():
        interval.centre.fill_(0.45)
        interval.half_width.fill_(0.25)
    u = np.abs(WEIGHT) / REACH
    share = np.where(u < 0.2, 0.0, np.where(u > 0.7, 1.0, (u - 0.2) / 0.5))
    found = interval(weight)
    np.testing.assert_allclose(found.detach(), np.sign(WEIGHT) * REACH * share, rtol=0, atol=1e-6)
    found.abs().sum().backward()
    inside = (u > 0.2) & (u < 0.7)
    assert interval.centre.grad.item() == pytest.approx(-(REACH * inside).sum() / 0.5, rel=1e-4)
    with torch.no_grad():
        interval.half_width.fill_(-1.0)
    interval.keep_near()
    assert interval.half_width.item() > 0.0


@pytest.mark.parametrize("name", ["tanh", "interval"])
def test_what_ships_is_the_map(graph, tmp_path, name) -> None:
    changes = {"epochs": 1, "batch_size": 32, "weights.step": "fixed", "weights.map": name}
    choices = {layer.id: BitChoice.parse("w3a5") for layer in quantizable_layers(graph)}
    recipe = Recipe.read("lsq", {**changes, "optimizer.lr": 0.05, "optimizer.step_lr": 0.05})
    trained = train(graph, small.data(), recipe, out=tmp_path, choices=choices)
    state = torch.load(tmp_path / "checkpoint.pt")["twin"]
    shipped = Twin(trained.graph.module, mode="quantized")
    for layer, weight in shipped.weights.items():
        kept = state[next(key for key in state if key == f"{layer}:weight".replace(".", "_"))]
        assert not torch.equal(weight, kept), layer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights.map": "interval"}, r"weights: step: an interval is learned in place of steps"),
        ({"activations.map": "tanh"}, r"activations\.map: weights are mapped only"),
        (
            {"weights.map": "tanh", "proximal": {}},
            r"weights\.map: proximal has rounding of its own",
        ),
    ],
)
def test_maps_that_do_not_fit_are_refused(changes, message) -> None:
    with pytest.raises(TrainingError, match=message):
        Recipe.read("lsq", changes)
