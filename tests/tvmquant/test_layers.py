import numpy as np
import pytest
import torch
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from tvmquant.allocation import allocate
from tvmquant.bit_choice import W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import AllocationError, QuantizationError
from tvmquant.formats import WIDTHS
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.layers import quantizable_layers
from tvmquant.levels import annotated


class Network(nn.Module):
    """A residual block, a concat, a depthwise and a transposed convolution, a dense layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.mixed = nn.Conv2d(16, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        y = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        y = (self.mixed(y) + x).relu()
        y = self.up(self.depthwise(y).relu()).relu()
        return self.last(y.mean((2, 3)))


def layers(tmp_path, level="L0"):
    path = export_onnx(Network(), tmp_path / "network.onnx", (3, 8, 8))
    graph = tvmquant.load_onnx(path)
    if level == "L1":
        graph = annotated(graph)
    return {layer.id.split("/")[1]: layer for layer in quantizable_layers(graph)}


def test_each_layer(tmp_path):
    found = layers(tmp_path)
    facts = {name: (i.op, i.macs, i.weights, i.outputs, i.position) for name, i in found.items()}
    assert facts == {
        "stem": ("conv2d", 64 * 27 * 8, 216, 8, "first"),
        "left": ("conv2d", 64 * 64, 64, 8, ""),
        "right": ("conv2d", 64 * 576, 576, 8, ""),
        "mixed": ("conv2d", 64 * 128, 128, 8, ""),
        "depthwise": ("depthwise_conv2d", 64 * 72, 72, 8, ""),
        "up": ("conv2d_transpose", 64 * 128, 128, 4, ""),
        "last": ("dense", 20, 20, 5, "last"),
    }
    every = [BitChoice.parse(f"w{w}a{a}") for w in WIDTHS for a in WIDTHS]
    assert all(layer.allows(choice) for layer in found.values() for choice in every)
    grouped = BitChoice.parse("w3a5g64")
    assert {name for name, layer in found.items() if not layer.allows(grouped)} == {
        "depthwise", "up",
    }  # fmt: skip


def test_who_shares_an_activation(tmp_path):
    found = layers(tmp_path)
    assert found["left"].group == found["right"].group
    assert len(found["mixed"].edges) == 2
    assert len({layer.group for layer in found.values()}) == 6


class Windows(nn.Module):
    """Convolutions whose windows have whole rows, and such whose rows are cut up."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.tall = nn.Conv2d(8, 8, 3, dilation=(2, 1), padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, dilation=2, padding=2)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        for layer in (self.tall, self.dilated, self.grouped):
            x = layer(x).relu()
        return self.last(x.mean((2, 3)))


def test_groups_of_weights_need_whole_rows_of_the_window(tmp_path):
    graph = tvmquant.load_onnx(export_onnx(Windows(), tmp_path / "net.onnx", (3, 12, 12)))
    found = quantizable_layers(graph)
    grouped = BitChoice.parse("w4a8g32")
    assert all(layer.allows(W4A8) and layer.allows(W4A4) for layer in found)
    names = [layer.id.split("/")[1] for layer in found if layer.allows(grouped)]
    assert names == ["stem", "tall", "last"]
    # no plan counts four bits where the library stores eight
    omega = {layer.id: {"w8a8": 0.0, str(grouped): 1.0} for layer in found}
    plan = allocate(found, omega, size="0.99x", choices=[grouped], pin_ends=False).choices
    assert {plan["/dilated/Conv"], plan["/grouped/Conv"]} == {W8A8}
    with pytest.raises(AllocationError, match=r"'/dilated/Conv' .* w4a8g32, .* no kernel"):
        allocate(found, omega, pinned={"/dilated/Conv": grouped})
    images = np.zeros((2, 3, 12, 12), np.float32)
    with pytest.raises(QuantizationError, match=r"'/grouped/Conv' .* cannot compute w4a8g32"):
        tvmquant.quantize(
            graph, tvmquant.calibrate(graph, images), choices={"/grouped/Conv": grouped}
        )


class Dense(nn.Module):
    """Two concats share an operand, as in a DenseNet's block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first, self.second = nn.Conv2d(8, 4, 1), nn.Conv2d(12, 4, 1)
        self.third, self.apart = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        a = self.first(x).relu()
        b = self.second(torch.cat([x, a], 1)).relu()
        return self.apart(self.third(torch.cat([x, a, b], 1)).relu())


def test_concats_that_share_an_operand_tie_their_readers(tmp_path):
    graph = tvmquant.load_onnx(export_onnx(Dense(), tmp_path / "net.onnx", (3, 6, 6)))
    found = {layer.id.split("/")[1]: layer for layer in quantizable_layers(graph)}
    # `first` reads the operand itself, `second` and `third` the concats
    tied = [found[name] for name in ("first", "second", "third")]
    assert len({layer.group for layer in tied}) == 1
    assert len({layer.group for layer in found.values()}) == 3
    assert set(found["second"].edges) < set(found["third"].edges)

    images = np.random.default_rng(0).normal(size=(4, 3, 6, 6)).astype("float32")
    calibration = tvmquant.calibrate(graph, images)
    with pytest.raises(QuantizationError, match="same activation"):
        tvmquant.quantize(graph, calibration, choices={found["third"].id: W4A4})
    narrow = {layer.id: W4A4 for layer in tied}
    quantized = tvmquant.quantize(graph, calibration, choices=narrow)
    widths = {
        span_name(call): BitChoice.parse(qop.attributes(call)["choice"]).activation.bits
        for _, call in bindings_of(quantized.main)
        if qop.is_call(call, qop.QCONV2D)
    }
    assert {name for name, bits in widths.items() if bits == 4} == set(narrow)
    # the program gives all of them one width, though only one gains by it
    layers = tuple(found.values())
    omega = {layer.id: {"w8a8": 0.0, "w8a4": 1.0, "w4a4": 2.0} for layer in layers}
    plan = allocate(layers, omega, bops="0.9x", choices=[BitChoice.parse("w8a4"), W4A4]).choices
    assert {plan[layer.id].activation.bits for layer in tied} == {4}
    assert tvmquant.simulate(quantized, images)[0].shape == (4, 4, 6, 6)


def test_both_levels_agree(tmp_path):
    assert layers(tmp_path) == layers(tmp_path, "L1")
