"""Layers of an imported graph made binary, trained, and shipped as they were trained."""

import numpy as np
import pytest
import torch
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from tests.tvmquant.training import small
from tvmquant import formats
from tvmquant.errors import TrainingError
from tvmquant.frontend import load_onnx
from tvmquant.nn import GRADIENTS, BinaryConv2d, RPReLU, RSign, freeze
from tvmquant.passes import pipeline
from tvmquant.training import Recipe, items, train
from tvmquant.training.binarization import binarized
from tvmquant.training.few_values import SignedWeight, TrainedSign, TwoScales
from tvmquant.training.method_sections import Binarization
from tvmquant.twin import Twin
from tvmquant.twin.quantizer_module import FakeQuantize, FakeSign

POINTS = torch.tensor([-1.5, -1.0, -0.4, 0.0, 0.3, 1.0, 1.2])


def _train(graph, out, name, changes=None, **options):
    epochs = max(1, len(Recipe.read(name).phases))
    recipe = Recipe.read(name, {"epochs": epochs, "batch_size": 32, **(changes or {})})
    return train(graph, small.data(), recipe, out=out, **options)


def _exact(trained, images):
    return Twin(trained.graph.module, mode="exact")(torch.from_numpy(images)).numpy()


def _formats(trained):
    twin = Twin(trained.graph.module)
    of_weights = set(twin.weight_edges.values())
    weights = [edge.format for edge in twin.edges if edge.id in of_weights]
    return weights, [edge.format for edge in twin.edges if edge.id not in of_weights]


@pytest.mark.parametrize(
    ("name", "weights", "signs"),
    [
        ("reactnet", ["int8", "binary", "binary", "int8"], 2),
        ("bnn", ["int8", "binary", "binary", "int8"], 2),
        ("abc-net", ["int8", *["binary"] * 6, "int8"], 2),
        ("bwn", ["int8", "binary", "binary", "int8"], 0),
        ("twn", ["int8", "int2", "int2", "int8"], 0),
        ("ttq", ["int8", "int8", "int8", "int8"], 0),
    ],
)
def test_the_library_computes_what_was_trained(graph, tmp_path, name, weights, signs) -> None:
    trained = _train(graph, tmp_path, name)
    found, activations = _formats(trained)
    assert found == weights
    assert activations.count("ubinary") == signs
    images, _ = small.data(12, seed=1)
    exact = _exact(trained, images)
    integer = trained.graph.with_module(
        pipeline.integerize(trained.graph.module, strict=True), "L2"
    )
    tvmquant.build(integer, out=tmp_path / "library", batch=12)
    np.testing.assert_array_equal(tvmquant.load(tmp_path / "library")(images), exact)
    # and as a file
    tvmquant.export_onnx(trained.graph, tmp_path / "trained.onnx")
    again = tvmquant.quantize(tvmquant.load_onnx(tmp_path / "trained.onnx"))
    np.testing.assert_array_equal(tvmquant.simulate(again, images)[0], exact)


def test_a_first_phase_has_real_weights(graph, tmp_path) -> None:
    changes = {"epochs": 8, "objective": {"labels": 1.0, "distillation": 0.0}}
    trained = _train(graph, tmp_path, "reactnet", changes, validation=small.data(100, seed=1))
    first, last = trained.history[:4], trained.history[4:]
    assert not any("top1" in epoch for epoch in first)
    assert all("top1" in epoch for epoch in last)
    assert last[-1]["top1"] > 40
    images, labels = small.data(100, seed=1)
    assert last[-1]["top1"] == 100 * np.mean(_exact(trained, images).argmax(1) == labels)


@pytest.mark.parametrize("name", ["reactnet", "binaryconnect", "ttq"])
def test_a_killed_training_goes_on(graph, tmp_path, monkeypatch, name) -> None:
    changes = {"epochs": 4}
    whole = _train(graph, tmp_path / "whole", name, changes)
    batches = items.batches_of

    def killed(data, recipe, epoch, **options):
        for step, batch in enumerate(batches(data, recipe, epoch, **options)):
            if (epoch, step) == (3, 1):
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr("tvmquant.training.loop.batches_of", killed)
    with pytest.raises(KeyboardInterrupt):
        _train(graph, tmp_path / "parts", name, changes)
    monkeypatch.undo()
    parts = _train(graph, tmp_path / "parts", name, changes)
    assert [e["loss"] for e in whole.history] == [e["loss"] for e in parts.history]
    images, _ = small.data(8, seed=2)
    np.testing.assert_array_equal(_exact(whole, images), _exact(parts, images))


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("strict", [False, True])
def test_signs_have_the_gradient_of_the_recipe(name, strict) -> None:
    given = FakeSign(torch.ones(1), torch.tensor([128]), 127, 129, strict=strict)
    x = POINTS.clone().requires_grad_()
    y = TrainedSign(given, Binarization(gradient=name))(x)
    y.backward(POINTS + 2.0)
    upper = POINTS > 0 if strict else POINTS >= 0
    np.testing.assert_array_equal(y.detach(), np.where(upper, 1.0, -1.0))
    wanted = GRADIENTS[name].activation(POINTS.double()) * (POINTS.double() + 2.0)
    np.testing.assert_allclose(x.grad, wanted, rtol=1e-6, atol=1e-7)
    assert {"gradient": name}.items() <= Binarization(gradient=name).model_dump().items()


def _weight_quantizer(bits=8):
    held = formats.parse(f"int{bits}")
    scale, zero = torch.ones(2), torch.zeros(1, dtype=torch.int32)
    return FakeQuantize(scale, zero, held.qmin, held.qmax, axis=0)


def test_two_scales_have_the_gradients_of_the_paper() -> None:
    weight = torch.tensor([[1.0, 0.04, -0.06, 0.5], [-2.0, 0.2, 0.0, -0.3]])
    quantizer = TwoScales(_weight_quantizer(), Binarization(weights="two_scales"), weight)
    # t = 0.05 * 2: means of 1, 0.5, 0.2 and of 2, 0.3
    np.testing.assert_allclose(quantizer.upper.detach(), [1.7 / 3.0], rtol=1e-6)
    np.testing.assert_allclose(quantizer.lower.detach(), [1.15], rtol=1e-6)
    x = weight.clone().requires_grad_()
    y = quantizer(x)
    step = 1.15 / 127
    p, n = np.rint(1.7 / 3.0 / step) * step, 1.15
    np.testing.assert_allclose(
        y.detach(), [[p, 0.0, 0.0, p], [-n, p, 0.0, -n]], rtol=1e-6, atol=1e-7
    )
    g = torch.arange(1.0, 9.0).reshape(2, 4)
    y.backward(g)
    np.testing.assert_allclose(
        x.grad, [[p, 2.0, 3.0, 4.0 * p], [5.0 * n, 6.0 * p, 7.0, 8.0 * n]], rtol=1e-6
    )
    np.testing.assert_allclose(quantizer.upper.grad, [1.0 + 4.0 + 6.0], rtol=1e-7)
    np.testing.assert_allclose(quantizer.lower.grad, [-(5.0 + 8.0)], rtol=1e-7)
    whole = quantizer.written(weight) / quantizer.scale[:, None]
    np.testing.assert_allclose(whole, torch.round(whole), atol=1e-4)
    assert int(whole.abs().max().round()) == 127


def test_drawn_signs_are_as_often_positive_as_the_weight_says() -> None:
    rows = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 2.0]]).repeat(2, 1)
    how = Binarization(scale=False, stochastic=True)
    quantizer = SignedWeight(_weight_quantizer(), how)
    torch.manual_seed(0)
    drawn = torch.stack([quantizer(rows) for _ in range(2000)])
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    positive = (drawn > 0).double().mean((0, 1))
    np.testing.assert_allclose(positive, [0.0, 0.25, 0.5, 0.75, 1.0], atol=0.03)
    # what ships is not drawn
    np.testing.assert_array_equal(quantizer.written(rows), [[-1.0, -1.0, 1.0, 1.0, 1.0]] * 2)


def test_weights_are_clipped_and_drawn_to_their_magnitude(graph, tmp_path, monkeypatch) -> None:
    seen = []

    def finish(method):
        twin = method.training.twin
        seen.append([twin.weights[layer].detach().abs() for layer in method.weights])

    monkeypatch.setattr("tvmquant.training.binary.Binarized.finish", finish)
    plain = {"epochs": 6, "optimizer.lr": 0.02, "binarization.clip": True}
    drawn = {"binarization.regularizer": "l2", "binarization.regularization": 1.0}
    _train(graph, tmp_path / "plain", "bnn-plus", {**plain, "binarization.regularizer": "none"})
    _train(graph, tmp_path / "drawn", "bnn-plus", {**plain, **drawn})
    assert all(float(weight.max()) <= 1.0 for weights in seen for weight in weights)
    for first, second in zip(*seen, strict=True):
        assert float(second.std() / second.mean()) < float(first.std() / first.mean())


def _formats_of(trained, layer):
    twin = Twin(trained.graph.module)
    return [edge.format for edge in twin.edges if edge.id == twin.weight_edges[layer]]


class _Binary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.sign = RSign(16)
        self.layer = BinaryConv2d(16, 16, 3, padding=1, binarize_input=False, gradient="reactnet")
        self.norm, self.slope = nn.BatchNorm2d(16), RPReLU(16)
        self.head = nn.Linear(16, small.CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = self.slope(self.norm(self.layer(self.sign(x))) + x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("frozen", [True, False])
def test_signs_that_a_model_has_are_trained(tmp_path, frozen) -> None:
    torch.manual_seed(0)
    network = _Binary().eval()
    with torch.no_grad():
        network.sign.threshold.normal_(0.0, 0.1)
    file = tmp_path / "binary.onnx"
    export_onnx(freeze(network) if frozen else network, file, small.SHAPE, fold_bn=False)
    graph = load_onnx(file)
    recipe = Recipe.read("reactnet", {"epochs": 4, "batch_size": 32, "optimizer.lr": 0.02})
    _, layers = binarized(graph, recipe.binarization)
    assert not layers
    trained = train(graph, small.data(), recipe, out=tmp_path)
    assert _formats(trained)[0] == ["int8", "binary", "int8"]
    before = Twin(graph.module if frozen else pipeline.canonicalize(graph.module))
    after = Twin(trained.graph.module)
    (name,) = [k for k, e in after.weight_edges.items() if "binary" in _formats_of(trained, k)]
    flipped = before.weights[name].sign() != after.weights[name].sign()
    assert 0 < int(flipped.sum()) < flipped.numel()
    images, _ = small.data(8, seed=1)
    integer = trained.graph.with_module(pipeline.integerize(trained.graph.module), "L2")
    np.testing.assert_array_equal(tvmquant.simulate(integer, images)[0], _exact(trained, images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"binarization.layers": ["nothing*"]}, "the model has no layer 'nothing\\*'"),
        ({"binarization.layers": ["*Gemm"]}, "cannot be binary: it is dense, and no shortcut"),
        ({"batch_norm": "folded"}, "binary layers are normalized while training"),
        ({"binarization.inputs": "real"}, "are of layers that read signs"),
        ({"binarization.gradient": "none"}, "binarization.gradient: 'none': input should be"),
        (
            {"phases": [{"share": 1.0, "changes": {"binarization.real_weights": True}}]},
            "of the last phase weights are signs",
        ),
        (
            {"phases": [{"share": 0.5, "changes": {"binarization.thresholds": False}},
                        {"share": 0.5}]},
            "binarization.thresholds is the same in all phases",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(graph, tmp_path, changes, message) -> None:
    with pytest.raises(TrainingError, match=message):
        _train(graph, tmp_path, "reactnet", changes)


def test_a_model_without_layers_for_it_is_refused(tmp_path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    export_onnx(network, tmp_path / "dense.onnx", small.SHAPE)
    with pytest.raises(TrainingError, match="no layer of the model 'dense' but its ends"):
        _train(load_onnx(tmp_path / "dense.onnx"), tmp_path, "bnn")
