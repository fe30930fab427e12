import torch
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from tvmquant.bit_choice import W4A4, W8A8
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


def test_both_levels_agree(tmp_path):
    assert layers(tmp_path) == layers(tmp_path, "L1")
