import numpy as np
import pytest
import torch
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from tvmquant.allocation import allocate
from tvmquant.bit_choice import W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import AllocationError, QuantizationError
from tvmquant.layers import quantizable_layers


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
        graph = tvmquant.quantization._annotated(graph, "asymmetric")
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
    assert found["depthwise"].choices == found["up"].choices == (W8A8,)
    assert W4A4 in found["last"].choices


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
    grouped = BitChoice(4, 8, 32)
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


def test_both_levels_agree(tmp_path):
    assert layers(tmp_path) == layers(tmp_path, "L1")
