"""Layers of few values: what they compute, and what becomes of them in ONNX and in a library."""

import collections

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from tests.tvmquant.networks import check_library, compile_network, float_outputs, images_of
from tvmquant.errors import QuantizationError
from tvmquant.layers import quantizable_layers
from tvmquant.nn import (
    ABCConv2d,
    BinaryConv2d,
    BinaryLinear,
    RPReLU,
    RSign,
    TernaryConv2d,
    XNORConv2d,
    freeze,
)

SHAPE = (3, 12, 12)
CHANNELS, OUTPUTS = 32, 16


@pytest.fixture(autouse=True)
def _fixed_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def signs(x):
    return torch.where(x >= 0.0, 1.0, -1.0)


def magnitudes(weight):
    return weight.abs().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("binarize_input", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_binary_convolution(binarize_input, scale, value):
    layer = BinaryConv2d(
        4, 6, (3, 1), stride=(2, 1), padding=(1, 2), groups=2, bias=True, padding_value=value,
        binarize_input=binarize_input, scale=scale,
    )  # fmt: skip
    x = torch.randn(2, 4, 5, 5)
    x[0, 0] = 0.0
    weight = signs(layer.weight) * (magnitudes(layer.weight) if scale else 1.0)
    padded = functional.pad(signs(x) if binarize_input else x, (2, 2, 1, 1), value=value)
    expected = functional.conv2d(padded, weight, layer.bias, (2, 1), groups=2)
    torch.testing.assert_close(layer(x), expected)


def test_xnor_convolution_scales_each_position():
    layer = XNORConv2d(4, 6, 3, stride=2, padding=1, bias=True)
    x = torch.randn(2, 4, 6, 6)
    box = torch.full((1, 1, 3, 3), 1 / 9)
    k = functional.conv2d(x.abs().mean(1, keepdim=True), box, stride=2, padding=1)
    product = functional.conv2d(signs(x), signs(layer.weight), stride=2, padding=1)
    expected = product * k * magnitudes(layer.weight)[:, 0] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_xnor_convolution_without_scales_of_positions():
    layer = XNORConv2d(4, 6, 3, padding=1, input_scale=False)
    x = torch.randn(2, 4, 6, 6)
    same = BinaryConv2d(4, 6, 3, padding=1)
    same.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), same(x))


def test_binary_dense_layer():
    layer = BinaryLinear(7, 3, bias=True)
    x = torch.randn(2, 7)
    weight = signs(layer.weight) * layer.weight.abs().mean(1, keepdim=True)
    torch.testing.assert_close(layer(x), signs(x) @ weight.T + layer.bias)


def test_a_sum_of_signs():
    layer = ABCConv2d(4, 6, 3, padding=1, bias=True, weight_terms=3, input_terms=2)
    x, weight = torch.randn(2, 4, 5, 5), layer.weight.detach()
    centred, deviation = weight - weight.mean(), weight.std(correction=0)
    planes = torch.stack([signs(centred + u * deviation) for u in (-1.0, 0.0, 1.0)])
    scales = torch.linalg.lstsq(planes.flatten(1).T, weight.flatten()[:, None]).solution
    whole = (planes.flatten(1).T @ scales).reshape(weight.shape)
    torch.testing.assert_close(layer.few_values(), whole)
    shifts = layer.input_shift.detach()
    torch.testing.assert_close(0.5 - shifts, torch.tensor([-0.25, 0.25]))
    inputs = sum(0.5 * signs(torch.clamp(x + v, 0.0, 1.0) - 0.5) for v in shifts)
    expected = functional.conv2d(inputs, whole, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_gradients_of_a_sum_of_signs():
    layer = ABCConv2d(4, 6, 3, weight_terms=2, input_terms=2)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    first, second = layer._terms()
    whole = (first + second).detach().requires_grad_()
    real = x.detach().requires_grad_()
    shifts, scales = layer.input_shift.detach(), layer.input_scale.detach()
    inputs = sum(b * signs(real + v - 0.5) for b, v in zip(scales, shifts, strict=True))
    total = functional.conv2d(inputs.detach().requires_grad_(), whole)
    (of_whole,) = torch.autograd.grad(total.sum(), whole)
    magnitudes = first.abs().max() + second.abs().max()
    torch.testing.assert_close(layer.weight.grad, of_whole * magnitudes.detach())
    box = functional.conv_transpose2d(torch.ones_like(total), whole.detach())
    passed = sum(b * ((x + v >= 0.0) & (x + v <= 1.0)) for b, v in zip(scales, shifts, strict=True))
    torch.testing.assert_close(x.grad, box * passed)


@pytest.mark.parametrize("terms", [{"weight_terms": 0}, {"input_terms": 0}])
def test_a_sum_of_nothing(terms):
    with pytest.raises(QuantizationError, match="expected at least one of each"):
        ABCConv2d(3, 4, 3, **terms)


def test_a_sum_that_other_processors_compute(tmp_path):
    layers = [convolution(ABCConv2d, weight_terms=3, input_terms=2, stride=2)]
    network = Network(*layers).eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    path = export_onnx(network, tmp_path / "net.onnx", SHAPE)
    compiled = compile_network(path, images_of(SHAPE))
    target = "llvm -mcpu=haswell"
    assert not check_library(compiled, tmp_path / "library", target=target).float_audit


def test_a_network_learns():
    x = torch.randn(256, 8)
    y = (x[:, :4].sum(1) > 0).long()
    network = nn.Sequential(
        BinaryLinear(8, 64, binarize_input=False), nn.BatchNorm1d(64), BinaryLinear(64, 2)
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    losses = []
    for _ in range(100):
        loss = functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("layer", [BinaryConv2d, XNORConv2d, BinaryLinear])
def test_an_unknown_gradient(layer):
    sizes = (3, 4) if layer is BinaryLinear else (3, 4, 3)
    with pytest.raises(QuantizationError, match="unknown gradient 'relu'"):
        layer(*sizes, gradient="relu")


def test_padding_is_a_number():
    with pytest.raises(QuantizationError, match="padding='same'"):
        BinaryConv2d(3, 4, 3, padding="same")


class Network(nn.Module):
    """Layers of few values between ones of 8 bits."""

    def __init__(self, *layers):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 1, 1), nn.BatchNorm2d(CHANNELS))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(OUTPUTS)
        self.head = nn.Linear(OUTPUTS, 10)

    def forward(self, image):
        x = torch.relu(self.norm(self.layers(self.stem(image))))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def convolution(kind, **options):
    return kind(CHANNELS, OUTPUTS, 3, padding=1, **options)


def dense(**options):
    layer = BinaryLinear(CHANNELS, OUTPUTS, **options)
    shapes = nn.Flatten(), nn.Unflatten(1, (OUTPUTS, 1, 1))
    return [nn.AdaptiveAvgPool2d(1), shapes[0], layer, shapes[1]]


def shifted():
    layers = [RPReLU(CHANNELS), RSign(CHANNELS), RPReLU(OUTPUTS)]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data.add_(torch.empty_like(parameter).uniform_(-0.2, 0.2))
    conv = convolution(BinaryConv2d, binarize_input=False, gradient="reactnet")
    return [*layers[:2], conv, layers[2]]


# what stands between, and the choice of its layers
NETWORKS = {
    "binary": (lambda: [convolution(BinaryConv2d)], ["w1a1"]),
    "binary, no scale": (lambda: [convolution(BinaryConv2d, scale=False)], ["w1a1"]),
    "binary, 1 around": (lambda: [convolution(BinaryConv2d, padding_value=1.0)], ["w1a1"]),
    "binary, -1 around": (lambda: [convolution(BinaryConv2d, padding_value=-1.0)], ["w1a1"]),
    "real inputs": (lambda: [convolution(BinaryConv2d, binarize_input=False)], ["w1a8"]),
    "reactnet": (shifted, ["w1a1"]),
    # the mean over channels is a convolution as well
    "xnor": (lambda: [convolution(XNORConv2d, stride=2)], ["w8a8", "w1a1"]),
    "xnor without K": (lambda: [convolution(XNORConv2d, input_scale=False)], ["w1a1"]),
    "ternary": (lambda: [convolution(TernaryConv2d)], ["w2a8"]),
    "sum": (lambda: [convolution(ABCConv2d, weight_terms=3)], ["w1a1"] * 3),
    "sum of inputs": (lambda: [convolution(ABCConv2d, input_terms=2)], ["w1a1"] * 4),
    "dense": (lambda: dense(), ["w1a1"]),
    "dense, real inputs": (lambda: dense(binarize_input=False, bias=True), ["w1a8"]),
}


def network_of(name):
    network = Network(*NETWORKS[name][0]()).eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    return network


def check(network, path, name, **options):
    compiled = compile_network(export_onnx(network, path, SHAPE, **options), images_of(SHAPE))
    choices = [str(layer.usual) for layer in quantizable_layers(compiled.graph)]
    assert choices == ["w8a8", *NETWORKS[name][1], "w8a8"]
    (found,) = float_outputs(compiled)
    expected = network(torch.from_numpy(compiled.images)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    return compiled


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_layers_are_known_and_become_integers(name, tmp_path):
    compiled = check(network_of(name), tmp_path / "net.onnx", name)
    assert not check_library(compiled, tmp_path / "library", batch=2).float_audit


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_has_a_gradient(name):
    network = network_of(name).train().requires_grad_(True)
    network(torch.from_numpy(images_of(SHAPE))).square().sum().backward()
    for parameter in network.parameters():
        assert torch.isfinite(parameter.grad).all()
    for layer in network.layers:
        for parameter in layer.parameters():
            assert parameter.grad.abs().max() > 0.0


@pytest.mark.parametrize("opset", [11, 21])
@pytest.mark.parametrize("name", ["binary", "reactnet", "ternary", "sum"])
def test_other_opsets(name, opset, tmp_path):
    check(network_of(name), tmp_path / "net.onnx", name, opset=opset, fold_bn=False)


@pytest.mark.parametrize("name", ["binary, 1 around", "reactnet", "xnor", "ternary", "sum"])
def test_the_other_exporter(name, tmp_path):
    network = network_of(name).requires_grad_(True)  # as after training
    check(network, tmp_path / "net.onnx", name, style="dynamo", opset=18)


@pytest.mark.parametrize("name", ["binary", "reactnet", "ternary", "dense", "xnor", "sum"])
def test_frozen_networks_hold_constants(name, tmp_path):
    network = network_of(name)
    frozen = freeze(network)
    images = torch.from_numpy(images_of(SHAPE))
    assert torch.equal(frozen(images), network(images))
    assert torch.equal(freeze(frozen)(images), network(images))
    check(frozen, tmp_path / "net.onnx", name)
    nodes = collections.Counter(n.op_type for n in onnx.load(tmp_path / "net.onnx").graph.node)
    has_signs = name != "ternary"
    assert (nodes["GreaterOrEqual"], nodes["Where"]) == (has_signs, has_signs)
    assert nodes["Abs"] == (name == "xnor")
    assert nodes["Mul"] == (name in ("xnor", "sum"))  # by K, by b
