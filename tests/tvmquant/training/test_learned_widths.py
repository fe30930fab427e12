"""Widths that are learned: per channel and per tensor, under targets, and as they ship."""

import numpy as np
import pytest
import torch

import tvmquant
from tests.tvmquant.training import small
from tvmquant.bit_choice import BitChoice
from tvmquant.deploy.manifest import mean_width
from tvmquant.errors import TrainingError
from tvmquant.layers import quantizable_layers
from tvmquant.passes import pipeline
from tvmquant.training import Recipe, items, train
from tvmquant.training.learned_widths import LearnedWidths
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.sections import Quantizer
from tvmquant.training.width_quantizer import WidthQuantizer
from tvmquant.training.width_targets import whole_widths
from tvmquant.twin import Twin
from tvmquant.twin.quantizer_module import FakeQuantize

RECIPE = Recipe.read(
    "fdqmp",
    {"epochs": 6, "batch_size": 16, "optimizer.lr": 0.05, "optimizer.step_lr": 0.02,
     "widths.every": 1},
)  # fmt: skip


def _train(graph, out, recipe=RECIPE, choice="w5a5"):
    choices = {layer.id: BitChoice.parse(choice) for layer in quantizable_layers(graph)}
    return train(
        graph, small.data(), recipe, out=out, choices=choices, validation=small.data(40, seed=1)
    )


def _weight(scale=(0.5, 0.25), bits=4):
    most = (1 << (bits - 1)) - 1
    zero = torch.zeros(1, dtype=torch.int32)
    given = FakeQuantize(torch.tensor(scale), zero, -most, most, axis=0)
    return WidthQuantizer(TrainedQuantizer(given, Quantizer(), per_item=False), 2)


def _activation(scale=0.5, bits=4, zero=0):
    given = FakeQuantize(
        torch.tensor([scale]), torch.tensor([zero], dtype=torch.int32), 0, (1 << bits) - 1
    )
    return WidthQuantizer(TrainedQuantizer(given, Quantizer(), per_item=True), 2)


def test_bits_are_those_of_the_ratio() -> None:
    weight = _weight()
    with torch.no_grad():
        weight.reach.copy_(weight.scale * torch.tensor([7.4, 7.6]))
    assert weight.bits().tolist() == [4.0, 5.0]
    weight.bits().sum().backward()
    slope = 1.0 / (8.0 * np.log(2.0))  # of log2(q / d + 1) by q / d
    assert float(weight.reach.grad[0] * weight.scale[0].detach()) == pytest.approx(slope)
    activation = _activation()
    with torch.no_grad():
        activation.reach.copy_(activation.scale * 7.0)
    assert activation.bits().tolist() == [3.0]


def test_numbers_are_rounded_to_steps_within_the_range() -> None:
    weight = _weight((0.5, 0.5))
    with torch.no_grad():
        weight.reach.copy_(torch.tensor([0.6, 3.5]))
    x = torch.tensor([[-9.0, 0.7, 1.2, 9.0], [-9.0, 0.7, 1.2, 9.0]], requires_grad=True)
    assert weight(x).tolist() == [[-0.5, 0.5, 0.5, 0.5], [-3.5, 0.5, 1.0, 3.5]]
    weight(x).sum().backward()
    # of what is clipped, the gradient is the range's
    assert weight.reach.grad.tolist() == [2.0, 0.0]
    assert x.grad.tolist() == [[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize("zero", [0, 5])
def test_fixed_widths_keep_the_range(zero: int) -> None:
    activation = _activation(zero=zero)
    activation.fix(torch.tensor([3]))
    activation.settle()
    assert (int(activation.qmin), int(activation.qmax)) == (0, 7)
    assert int(activation.zero_point) == round(zero / 15 * 7)
    low, high = (float(activation(torch.tensor([x])).detach()) for x in (-99.0, 99.0))
    assert high - low == pytest.approx(7.5)
    assert activation.bits().tolist() == [3.0]


def test_whole_widths_use_the_budget_up() -> None:
    random = np.random.default_rng(0)
    wanted = random.uniform(1.0, 9.0, 200)
    values = random.integers(1, 50, 200)
    for share in (0.3, 0.5, 0.9):
        budget = share * 8 * values.sum()
        found = whole_widths(wanted, values, budget)
        assert budget - values.min() < found @ values <= budget
        assert found.min() >= 2
        assert found.max() <= 8
        order = np.argsort(wanted)
        assert np.all(np.diff(found[order]) >= -1)
    assert whole_widths(wanted, values, 8 * values.sum()).tolist() == [8] * 200
    assert whole_widths(wanted, values, 2 * values.sum()).tolist() == [2] * 200


def test_targets_are_met_and_the_library_computes_what_was_trained(graph, tmp_path) -> None:
    trained = _train(graph, tmp_path)
    last = trained.history[-1]
    assert 38.0 < last["weights"] <= 40.0
    assert 36.0 < last["activations"] <= 40.0
    images, labels = small.data(40, seed=1)
    exact = Twin(trained.graph.module, mode="exact")(torch.from_numpy(images)).numpy()
    assert last["top1"] == 100 * np.mean(exact.argmax(1) == labels)
    integer = trained.graph.with_module(
        pipeline.integerize(trained.graph.module, strict=True), "L2"
    )
    np.testing.assert_array_equal(tvmquant.simulate(integer, images)[0], exact)
    tvmquant.export_onnx(trained.graph, tmp_path / "trained.onnx")
    again = tvmquant.quantize(tvmquant.load_onnx(tmp_path / "trained.onnx"))
    np.testing.assert_array_equal(tvmquant.simulate(again, images)[0], exact)
    for name, network in (("own", integer), ("imported", again)):
        tvmquant.build(network, out=tmp_path / name, threads=1, batch=40)
        library = tvmquant.load(tmp_path / name)
        np.testing.assert_array_equal(library(images), exact)
        layers = [layer for layer in library.manifest.layers if layer.choice]
        assert 2.0 < min(mean_width(layer.channel_widths) or 8.0 for layer in layers) < 4.0


def test_steps_move_once_in_so_many_steps_of_all_epochs(graph, tmp_path, monkeypatch) -> None:
    moved = []

    def watched(self, batch):
        clip(self, batch)
        moved.append(self.quantizers[0].scale.grad is not None)

    clip = LearnedWidths.before_step
    monkeypatch.setattr(LearnedWidths, "before_step", watched)
    _train(graph, tmp_path, Recipe.read(RECIPE, {"epochs": 2, "phases": [], "widths.every": 8}))
    assert len(moved) == 12  # more than an epoch's are needed
    assert np.flatnonzero(moved).tolist() == [7]


def test_a_target_below_the_least_widths_is_refused(graph, tmp_path) -> None:
    recipe = Recipe.read(RECIPE, {"widths.weights": 0.2})
    with pytest.raises(TrainingError, match=r"widths\.weights: 0\.2 of .*; at 2 bits .* 0\.2"):
        _train(graph, tmp_path / "out", recipe)


@pytest.mark.parametrize("epoch", [2, 3])  # while widths are learned, and once they are fixed
def test_a_killed_training_goes_on(graph, tmp_path, monkeypatch, epoch: int) -> None:
    recipe = Recipe.read(RECIPE, {"epochs": 5})
    whole = _train(graph, tmp_path / "whole", recipe)
    monkeypatch.setattr("tvmquant.training.loop.SECONDS_BETWEEN", 0.0)
    batches = items.batches_of

    def killed(data, phase, number, **options):
        for step, batch in enumerate(batches(data, phase, number, **options)):
            if (number, step) == (epoch, 2):
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr("tvmquant.training.loop.batches_of", killed)
    with pytest.raises(KeyboardInterrupt):
        _train(graph, tmp_path / "parts", recipe)
    monkeypatch.undo()
    parts = _train(graph, tmp_path / "parts", recipe)
    kept = ("loss", "top1", "weights", "activations")
    assert [[e[k] for k in kept] for e in parts.history] == [
        [e[k] for k in kept] for e in whole.history
    ]
    first, second = (Twin(trained.graph.module).weights for trained in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
