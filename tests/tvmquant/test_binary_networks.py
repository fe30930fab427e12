"""Networks with layers of one bit, from ONNX to libraries that compute in integers only."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from tests.tvmquant.networks import (
    MIXTURE_SHAPE,
    Compiled,
    as_tuple,
    check_library,
    compile_network,
    export_mixture,
    float_outputs,
    images_of,
    sqnr_db,
)
from tvmquant import nn as nn_of_one_bit
from tvmquant.bit_choice import BitChoice
from tvmquant.deploy.build import build
from tvmquant.deploy.loader import load
from tvmquant.errors import TVMQuantError
from tvmquant.export import to_onnx
from tvmquant.frontend import load_onnx
from tvmquant.layers import is_quantized, quantizable_layers
from tvmquant.levels import canonical
from tvmquant.passes import pipeline
from tvmquant.quantization import apply_calibration, calibrate, quantize
from tvmquant.sensitivity import estimate_sensitivity
from tvmquant.simulator import simulate
from tvmquant.twin import Twin

SHAPE = (3, 12, 12)


def straight_through(x):
    """Return the signs as Bi-Real nets and ReActNets are exported: with their gradient's terms."""
    clipped = torch.clamp(x, -1.0, 1.0)
    return torch.sign(x).detach() - clipped.detach() + clipped


class BinaryConv2d(nn.Conv2d):
    """Signs times signs, with a magnitude per output channel."""

    def forward(self, x):
        scale = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True).detach()
        clipped = torch.clamp(self.weight, -1.0, 1.0)
        weight = (scale * torch.sign(self.weight)).detach() - clipped.detach() + clipped
        return nn.functional.conv2d(x, weight, None, self.stride, self.padding)


class Block(nn.Module):
    """A basic block of ReActNet: shifted signs, a shortcut of real numbers, RPReLU."""

    def __init__(self, channels, stride=1):
        super().__init__()
        self.before = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.3)
        self.conv = BinaryConv2d(channels, channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.shift = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.1)
        self.prelu = nn.PReLU(channels)
        self.back = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.1)

    def forward(self, x):
        y = self.norm(self.conv(straight_through(x + self.before))) + self.pool(x)
        return self.prelu(y + self.shift) + self.back


class BinaryNetwork(nn.Module):
    """Layers of one bit between ones of 8: with shortcuts, and one behind the other."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32))
        self.blocks = nn.Sequential(Block(32), Block(32, 2), Block(32))
        self.conv = BinaryConv2d(32, 48, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(48)
        self.pointwise = BinaryConv2d(48, 40, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(40)
        self.head = nn.Linear(40, 10)

    def forward(self, image):
        x = self.blocks(self.stem(image))
        x = self.norm(self.conv(torch.sign(x)))
        x = torch.nn.functional.max_pool2d(x, 2)
        x = self.last_norm(self.pointwise(torch.sign(x)))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(torch.relu(x), 1), 1))


@pytest.fixture(scope="module")
def binary_onnx(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BinaryNetwork()
    network.eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    with torch.no_grad():  # BN scales of either sign, and of 0
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight[::5] *= -1.0
            norm.weight[3] = 0.0
            norm.bias[3] = 0.3
    path = tmp_path_factory.mktemp("binary") / "binary.onnx"
    return export_onnx(network, path, SHAPE, fold_bn=False)


@pytest.fixture(scope="module")
def compiled(binary_onnx):
    return compile_network(binary_onnx, images_of(SHAPE, 32))


def test_layers_of_one_bit_are_known(compiled):
    choices = {layer.id: str(layer.usual) for layer in quantizable_layers(compiled.graph)}
    assert [c for c in choices.values() if c != "w8a8"] == ["w1a1"] * 5
    assert len(choices) == 7
    assert not is_quantized(compiled.graph)


@pytest.mark.parametrize("target", ["native", "llvm -mcpu=haswell", "llvm -mcpu=x86-64"])
def test_the_library_computes_what_is_simulated(compiled, target, tmp_path):
    manifest = check_library(compiled, tmp_path / "out", batch=2, target=target)
    assert not manifest.float_audit


def test_signs_are_those_of_the_float_network(compiled):
    """Behind them rounding is another matter: signs amplify it, of random weights more than any."""
    (reference,) = float_outputs(compiled)
    found = Twin(canonical(compiled.graph).module)(torch.from_numpy(compiled.images))
    assert sqnr_db(reference, found.detach().numpy()) > 80.0


def test_the_float_build_computes_signs(compiled, tmp_path):
    build(compiled.graph, out=tmp_path / "float", batch=2)
    images = compiled.images[:2]
    (found,) = as_tuple(load(tmp_path / "float")(images))
    np.testing.assert_allclose(found, float_outputs(compiled)[0][:2], rtol=1e-3, atol=1e-3)


class UnusualNetwork(nn.Module):
    """Channels that fill no words, groups, borders of other kinds, thresholds out of reach."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 3, 1, 1)
        self.layers = nn.ModuleList(
            nn_of_one_bit.BinaryConv2d(40, 40, 3, 1, 1, groups=groups) for groups in (1, 40, 2)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(40) for _ in self.layers)
        self.widen = nn_of_one_bit.BinaryConv2d(40, 64, 1)
        self.reflected = nn_of_one_bit.BinaryConv2d(64, 64, 3, binarize_input=False)
        self.stepped = nn_of_one_bit.BinaryConv2d(64, 32, 3, 2, 1, binarize_input=False)
        self.head = nn.Linear(32, 10)

    def forward(self, image):
        x = self.stem(image)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x))
        x = nn_of_one_bit.sign(self.widen(x))
        x = self.reflected(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"))
        x = self.stepped((x > 0.5).to(torch.float32) * 0.25)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(torch.relu(x), 1), 1))


@pytest.mark.parametrize("target", ["native", "llvm -mcpu=haswell"])
def test_unusual_layers_are_exact(target, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UnusualNetwork().eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    for norm in network.norms:
        norm.weight[::5] *= -1.0
        norm.weight[1:3], norm.bias[1], norm.bias[2] = 0.0, 0.5, -0.5
        norm.bias[3], norm.bias[4] = 1e6, -1e6  # no sum of products reaches the threshold
    path = export_onnx(network, tmp_path / "net.onnx", SHAPE, fold_bn=False)
    compiled = compile_network(path, images_of(SHAPE))
    choices = [str(layer.usual) for layer in quantizable_layers(compiled.graph)]
    assert choices == ["w8a8", *["w1a1"] * 6, "w8a8"]
    manifest = check_library(compiled, tmp_path / "out", target=target)
    assert not manifest.float_audit
    assert sum("u1s1" in layer.kernel for layer in manifest.layers) == 2  # words of 64 channels


class Padded(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value
        self.stem = nn.Conv2d(3, 32, 3)
        self.conv = nn_of_one_bit.BinaryConv2d(32, 32, 3, binarize_input=False)

    def forward(self, image):
        signs = 0.375 * nn_of_one_bit.sign(self.stem(image))
        return self.conv(nn.functional.pad(signs, (1, 1, 1, 1), value=self.value)).mean((2, 3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.0, "Pad' pads a tensor of two values with 1; expected a whole number of steps of 0.375"),
        (float("nan"), "Pad' pads a tensor that is quantized with nan"),
        (float("inf"), "Pad' pads a tensor that is quantized with inf"),
    ],
)
def test_padding_of_no_known_meaning(value, message, tmp_path):
    path = export_onnx(Padded(value).eval(), tmp_path / "net.onnx", SHAPE)
    with pytest.raises(TVMQuantError, match=message):
        compile_network(path, images_of(SHAPE))


@pytest.mark.parametrize("choice", ["w1a8", "w4a1", "w1a1"])
def test_layers_of_float_networks_can_have_one_bit(choice, mixture, tmp_path):
    graph, calibration, images = mixture
    choices = {layer.id: BitChoice.parse(choice) for layer in quantizable_layers(graph)}
    annotated = apply_calibration(graph, calibration, choices=choices)
    quantized = annotated.with_module(pipeline.integerize(annotated.module), "L2")
    manifest = check_library(Compiled(graph, annotated, quantized, images), tmp_path / "out")
    assert {layer.choice for layer in manifest.layers} - {""} == {choice}
    rounded = Twin(annotated.module, mode="quantized")(torch.from_numpy(images))
    assert sqnr_db(rounded.detach().numpy(), simulate(quantized, images)[0]) > 40.0


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = export_mixture(tmp_path_factory.mktemp("mixture") / "mixture.onnx")
    graph, images = load_onnx(path), images_of(MIXTURE_SHAPE)
    return graph, calibrate(graph, images, batch_size=8), images


ONE_BIT = [BitChoice.parse(name) for name in ("w8a8", "w4a4", "w1a1")]


@pytest.mark.parametrize(("method", "growths"), [("hessian", 2.0), ("fisher", 1.0)])
def test_one_bit_is_measured(method, growths, mixture):
    """Whatever the method: by the growth of the loss."""
    graph, calibration, images = mixture
    options = {"choices": ONE_BIT, "max_probes": 4}
    measured = estimate_sensitivity(graph, images, calibration, method="output", **options)
    found = estimate_sensitivity(graph, images, calibration, method=method, **options)
    for name, terms in measured.perturbation.items():
        assert found.perturbation[name]["w1a1"] == pytest.approx(growths * terms["w1a1"], rel=1e-5)
        assert found.perturbation[name]["w4a4"] != pytest.approx(growths * terms["w4a4"], rel=1e-5)


def test_layers_of_the_models_own_choice_cost_nothing(compiled):
    calibration = calibrate(compiled.graph, compiled.images)
    found = estimate_sensitivity(
        compiled.graph, compiled.images[:8], calibration, choices=ONE_BIT, max_probes=4
    )
    free = {layer.id for layer in quantizable_layers(compiled.graph) if layer.imported is None}
    for name, terms in found.perturbation.items():
        assert set(terms) == ({"w8a8", "w4a4", "w1a1"} if name in free else {"w1a1"})
        assert (max(terms.values()) > 0.0) == (name in free)


def test_what_is_exported_and_imported_again_gives_the_same_integers(compiled):
    model = to_onnx(compiled.annotated).model
    onnx.checker.check_model(model, full_check=True)
    again = load_onnx(model)
    assert is_quantized(again)  # by the scales of its 8-bit layers
    choices = [str(layer.usual) for layer in quantizable_layers(again)]
    assert choices == [str(layer.usual) for layer in quantizable_layers(compiled.graph)]
    images = compiled.images[:4]
    (expected,) = simulate(compiled.quantized, images)
    (found,) = simulate(quantize(again), images)
    np.testing.assert_array_equal(found, expected)
