import math

import numpy as np
import pytest
import torch
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from tvmquant.bit_choice import W4A4, W4A8, BitChoice
from tvmquant.data import open_data
from tvmquant.errors import DataError, SensitivityError
from tvmquant.sensitivity import METHODS, Sensitivity, estimate_sensitivity

SHAPE = (2, 5, 5)
CLASSES = 3


def small_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.Softplus(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
        )  # fmt: skip
        for parameter in network.parameters():
            parameter.data *= 2.0
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return small_network()


@pytest.fixture(scope="module")
def graph(network, tmp_path_factory):
    path = export_onnx(network, tmp_path_factory.mktemp("net") / "net.onnx", SHAPE)
    return tvmquant.load_onnx(path)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((24, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def calibration(graph, images):
    return tvmquant.calibrate(graph, images)


def labelled(images, count=CLASSES):
    labels = np.arange(len(images)) % count
    return open_data([(image, int(label)) for image, label in zip(images, labels, strict=True)])


def exact_traces(network, images):
    """Return the trace of the Hessian of each weight, of the loss with soft labels."""
    x = torch.from_numpy(images)
    soft = network(x).detach().softmax(1)
    traces = []
    for layer in (network[0], network[2], network[6]):
        weight = layer.weight.detach().clone()

        def loss(flat, layer=layer, weight=weight):
            changed = torch.func.functional_call(
                network, {f"{list(network).index(layer)}.weight": flat.reshape(weight.shape)}, x
            )
            return nn.functional.cross_entropy(changed, soft)

        hessian = torch.autograd.functional.hessian(loss, weight.flatten())
        traces.append(float(hessian.diagonal().sum()))
    return traces


def test_traces_are_those_of_the_hessian(graph, network, images, calibration):
    found = estimate_sensitivity(graph, images, calibration, tolerance=0.02)
    for layer, exact in zip(found.layers.values(), exact_traces(network, images), strict=True):
        assert layer.trace == pytest.approx(exact, abs=4 * layer.standard_error + 0.02 * exact)
        assert layer.trace == pytest.approx(exact, rel=0.35)


def test_equation_of_the_hessian(graph, network, images, calibration):
    found = estimate_sensitivity(graph, images, calibration)
    name, layer = next(iter(found.layers.items()))
    weight = network[0].weight.detach().numpy()
    scale = np.abs(weight).reshape(3, -1).max(axis=1) / 7
    coarse = np.square(np.rint(weight / scale.reshape(-1, 1, 1, 1)) * scale.reshape(-1, 1, 1, 1)
                       - weight).sum()  # fmt: skip
    # the scale that is used clips less or more, but is never worse
    assert 0 < layer.weight["w4"] <= layer.trace / weight.size * coarse * 1.0001
    assert layer.weight["w8"] < 0.02 * layer.weight["w4"]
    assert found.perturbation[name]["w8a8"] == layer.weight["w8"] + layer.activation["a8"]


def test_fisher_is_the_square_of_each_items_gradient(graph, network, images, calibration):
    data = labelled(images)
    found = estimate_sensitivity(graph, data, calibration, method="fisher", labels=True)
    again = estimate_sensitivity(graph, data, calibration, method="fisher", labels=True)
    assert found == again
    fisher = torch.zeros_like(network[0].weight)
    for image, label in zip(images, np.arange(len(images)) % CLASSES, strict=True):
        loss = nn.functional.cross_entropy(
            network(torch.from_numpy(image[None])), torch.tensor([label])
        )
        fisher += torch.autograd.grad(loss, network[0].weight)[0].square() / len(images)
    from tvmquant.sensitivity.quantizers import make_quantizers

    quantizers = make_quantizers(graph, calibration, [W4A8])
    name = next(iter(found.layers))
    delta = quantizers.weights[name]["w4"] - network[0].weight.detach()
    expected = 0.5 * float((fisher * delta.square()).sum())
    assert found.layers[name].weight["w4"] == pytest.approx(expected, rel=1e-4)


def test_output_is_the_divergence_of_one_quantized_layer(graph, network, images, calibration):
    found = estimate_sensitivity(graph, images, calibration, method="output")
    from tvmquant.sensitivity.quantizers import make_quantizers

    quantizers = make_quantizers(graph, calibration, [W4A8])
    x = torch.from_numpy(images)
    logits = network(x).detach()
    for name, index in zip(found.layers, (0, 2, 6), strict=True):
        weight = quantizers.weights[name]["w4"]
        weight = weight.T if index == 6 else weight  # Relax multiplies by (inputs, outputs)
        changed = torch.func.functional_call(network, {f"{index}.weight": weight}, x)
        expected = nn.functional.kl_div(
            changed.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="batchmean"
        )
        assert found.layers[name].weight["w4"] == pytest.approx(expected.item(), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_choice_of_every_layer(graph, images, calibration, method):
    choices = [W4A8, W4A4, BitChoice(4, 8, 32)]
    found = estimate_sensitivity(graph, images[:8], calibration, method=method, choices=choices)
    assert list(found.perturbation) == [i.id for i in tvmquant.quantizable_layers(graph)]
    for row in found.perturbation.values():
        assert set(row) == {"w8a8", "w4a8", "w4a4", "w4a8g32"}
        assert all(math.isfinite(value) and value >= 0 for value in row.values())
        assert row["w4a4"] >= row["w4a8"] * 0.999 or method == "output"
    assert found.count == 8
    assert found.ranking("w4a4")[0] in found.perturbation
    again = estimate_sensitivity(graph, images[:8], calibration, method=method, choices=choices)
    assert again == found


@pytest.mark.parametrize("method", ["hessian", "fisher", "output"])
def test_labels_change_the_loss(graph, images, calibration, method):
    data = labelled(images)
    soft = estimate_sensitivity(graph, data, calibration, method=method)
    hard = estimate_sensitivity(graph, data, calibration, method=method, labels=True)
    assert (soft.labelled, hard.labelled) == (False, True)
    assert soft.perturbation != hard.perturbation


@pytest.mark.parametrize("method", ["hessian", "fisher", "output"])
@pytest.mark.parametrize("outputs", [1, 4])
def test_class_maps_and_single_values(tmp_path, images, method, outputs):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, outputs, 1))
    graph = tvmquant.load_onnx(export_onnx(network.eval(), tmp_path / "map.onnx", SHAPE))
    calibration = tvmquant.calibrate(graph, images)
    found = estimate_sensitivity(graph, images, calibration, method=method)
    assert all(row["w4a8"] > row["w8a8"] for row in found.perturbation.values())


def test_estimates_are_kept(graph, images, calibration, tmp_path, monkeypatch):
    first = estimate_sensitivity(graph, images, calibration, method="fisher", cache=tmp_path)
    (path,) = tmp_path.glob("sensitivity-*.json")
    assert Sensitivity.load(path) == first
    monkeypatch.setattr("tvmquant.sensitivity.estimate.make_quantizers", None)
    again = estimate_sensitivity(graph, images, calibration, method="fisher", cache=tmp_path)
    assert again == first
    with pytest.raises(TypeError):  # other data: not the file that is there
        estimate_sensitivity(graph, images + 1, calibration, method="fisher", cache=tmp_path)


def test_mistakes_are_named(graph, images, calibration):
    with pytest.raises(SensitivityError, match="'trace' is unknown; expected one of hessian"):
        estimate_sensitivity(graph, images, calibration, method="trace")
    with pytest.raises(SensitivityError, match="tolerance = 0"):
        estimate_sensitivity(graph, images, calibration, tolerance=0)
    with pytest.raises(DataError, match="sensitivity needs data"):
        estimate_sensitivity(graph, None, calibration)
    with pytest.raises(DataError, match="has no labels"):
        estimate_sensitivity(graph, images, calibration, labels=True)
    with pytest.raises(DataError, match=r"labels 0\.\.6 do not fit a model of 3 classes"):
        estimate_sensitivity(graph, labelled(images, 7), calibration, labels=True)


@pytest.mark.parametrize("method", ["hessian", "fisher", "output"])
def test_what_is_not_finite_is_named(graph, images, calibration, method):
    huge = images.copy()
    huge[3] = np.float32(3e38)
    with pytest.raises(SensitivityError, match="is NaN or infinite"):
        estimate_sensitivity(graph, huge, calibration, method=method)


def test_progress_is_told(graph, images, calibration):
    seen = []
    estimate_sensitivity(
        graph, images, calibration, method="fisher", progress=lambda *done: seen.append(done)
    )
    done, total = seen[-1]
    assert done == total
    assert done % len(images) == 0
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert all(d <= t for d, t in seen)
