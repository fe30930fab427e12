"""Layers of every width, from choice to library: integers, kernels, stored bytes, what is told."""

import itertools
import json

import pytest
import torch
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from tests.tvmquant.networks import Compiled, check_library, images_of
from tvmquant.allocation import allocate
from tvmquant.bit_choice import DEFAULT_CHOICES, BitChoice
from tvmquant.formats import WIDTHS
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.passes import pipeline
from tvmquant.quantization import apply_calibration

SHAPE = (3, 8, 8)
NAMES = (
    "w2a2",
    pytest.param("w3a3", marks=pytest.mark.slow),
    "w5a6",
    pytest.param("w6a6", marks=pytest.mark.slow),
    "w7a8",
    "w2a8g32",
)


class Network(nn.Module):
    """A layer of every operation that has weights; two of them read one activation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.left, self.right = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.depthwise = nn.Conv2d(64, 64, 5, padding=2, groups=64)
        self.up = nn.ConvTranspose2d(64, 32, 3, 2, 1)
        self.tiles = nn.ConvTranspose2d(32, 32, 2, 2)
        self.head = nn.Linear(32, 40)

    def forward(self, x):
        x = self.stem(x).relu()
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        x = self.up(self.depthwise(x).relu()).relu()
        return self.head(self.tiles(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    network = Network().eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    path = export_onnx(network, tmp_path_factory.mktemp("onnx") / "net.onnx", SHAPE)
    graph, images = tvmquant.load_onnx(path), images_of(SHAPE)
    return graph, tvmquant.calibrate(graph, images, batch_size=len(images)), images


def compiled(subject, choices):
    graph, calibration, images = subject
    annotated = apply_calibration(graph, calibration, choices=choices)
    quantized = annotated.with_module(pipeline.integerize(annotated.module), "L2")
    return Compiled(graph, annotated, quantized, images)


def mixed(graph):
    """Return a choice of its own for every activation, and weights of every width."""
    widths, read = itertools.cycle(reversed(WIDTHS)), {}
    choices = {}
    for layer in quantizable_layers(graph):
        a_bits = read.setdefault(layer.group, 2 + len(read) % 7)
        choices[layer.id] = BitChoice.parse(f"w{next(widths)}a{a_bits}")
    assert len(set(choices.values())) == len(choices)
    return choices


def check_integers(network, choices):
    """Check that a layer's integers lie within its formats."""
    contractions = (qop.QCONV2D, qop.QCONV2D_TRANSPOSE, qop.QDENSE)
    calls = [v for _, v in bindings_of(network.quantized.main) if qop.is_call(v, *contractions)]
    assert len(calls) == len(choices)
    for call in calls:
        attrs, weight = qop.attributes(call), qop.constant_array(call.args[1])
        choice = choices[attrs["id"]]
        assert attrs["choice"] == str(choice)
        assert choice.weight.qmin <= weight.min() < weight.max() <= choice.weight.qmax
        assert 0 <= attrs["input_qmin"] < attrs["input_qmax"] <= choice.activation.qmax


@pytest.mark.parametrize("name", NAMES)
def test_a_library_computes_what_the_oracle_does(subject, tmp_path, name):
    layers = quantizable_layers(subject[0])
    choices = uniform_choices(layers, BitChoice.parse(name), pin_ends=False)
    network = compiled(subject, choices)
    check_integers(network, choices)
    manifest = check_library(network, tmp_path / "library", threads=1)
    assert {i.id: i.choice for i in manifest.layers if i.choice} == {
        layer: str(choice) for layer, choice in choices.items()
    }


@pytest.mark.parametrize("target", ["native", "haswell"])
def test_widths_may_differ_from_layer_to_layer(subject, tmp_path, target):
    choices = mixed(subject[0])
    network = compiled(subject, choices)
    check_integers(network, choices)
    manifest = check_library(network, tmp_path / "library", threads=2, target=target)
    for layer in manifest.layers:
        if layer.choice:
            choice = choices[layer.id]
            assert layer.choice == str(choice)
            assert layer.weight_format == choice.weight.name
            assert layer.activation_format == choice.activation.name
    assert manifest.inputs[0].raw_range == [0, 3]  # the stem's, of 2 bits
    saved = json.loads((tmp_path / "library" / "manifest.json").read_text())
    assert {i["choice"] for i in saved["layers"]} == {str(c) for c in choices.values()} | {""}


def test_the_file_holds_weights_at_their_own_width(subject, tmp_path):
    layers = quantizable_layers(subject[0])
    weights = sum(layer.weights for layer in layers)
    sizes = {}
    for name in ("w8a8", "w6a8", "w4a8", "w2a8"):
        choices = uniform_choices(layers, BitChoice.parse(name), pin_ends=False)
        out = tmp_path / name
        network = compiled(subject, choices)
        sizes[name] = tvmquant.build(network.quantized, out=out, threads=1).library["bytes"]
    for name, bits in (("w6a8", 6), ("w4a8", 4), ("w2a8", 2)):
        saved = sizes["w8a8"] - sizes[name]
        assert saved > 0.7 * weights * (8 - bits) / 8, (name, sizes)


def test_a_width_is_added_by_its_name_alone(subject):
    """What `DEFAULT_CHOICES` lists is all that has to know of it."""
    graph, calibration, _ = subject
    layers = quantizable_layers(graph)
    added = BitChoice.parse("w3a3")
    assert added not in DEFAULT_CHOICES
    choices = (*DEFAULT_CHOICES, added)
    omega = {
        layer.id: {str(c): 4.0**-c.weight.bits + 4.0**-c.activation.bits for c in choices}
        for layer in layers
    }
    plan = allocate(layers, omega, size="0.46x", choices=choices, pin_ends=False).choices
    assert added in plan.values()
    quantized = tvmquant.quantize(graph, calibration, choices=plan)
    assert quantized.level == "L2"


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_program_offers_every_width(subject, bits):
    layers = quantizable_layers(subject[0])
    choices = [BitChoice.parse(f"w{width}a{width}") for width in WIDTHS]
    best = BitChoice.parse(f"w{bits}a{bits}")
    omega = {layer.id: {str(c): float(c != best) for c in choices} for layer in layers}
    found = allocate(layers, omega, size="1x", bops="1x", choices=choices, pin_ends=False)
    assert set(found.choices.values()) == {best}
    macs = sum(layer.macs for layer in layers)
    assert found.totals["bops"] == macs * bits**2
