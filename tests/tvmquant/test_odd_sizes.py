"""Every kind of kernel compiles and is exact at sizes that are large and divided by nothing."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from tests.tvmquant.networks import as_tuple, compile_network, images_of
from tvmquant.deploy.build import build
from tvmquant.deploy.loader import load
from tvmquant.simulator import simulate

# how many outputs, the last ones, are computed in float
FLOAT = 3
SHAPES = [(6, 61, 61), (3, 299, 31), (257, 7, 7), (5, 33, 127), (17, 1, 601), (1, 97, 13)]
TARGETS = [("x86-64", 2), ("haswell", 1), ("haswell", 4), ("native", 2)]


class EveryKind(nn.Module):
    """One kernel of every kind that reads a feature map of some size, each with an output."""

    def __init__(self, channels):
        super().__init__()
        wide = channels + 10
        self.pointwise = nn.Conv2d(channels, wide, 1)
        self.conv = nn.Sequential(nn.Conv2d(channels, wide, 3, 1, 1), nn.ReLU())
        self.strided = nn.Conv2d(wide, wide + 1, (3, 5), 2, 1)
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, groups=wide), nn.Hardswish())
        self.up = nn.ConvTranspose2d(wide, 3, 3, 2, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, wide, 1), nn.Sigmoid())
        self.dense = nn.Linear(wide, 13)

    def forward(self, image):
        x, y = self.pointwise(image), self.conv(image)
        total = x + y
        scaled = total * self.gate(total)
        pooled = nn.functional.max_pool2d(total, 3, 2, 1)
        averaged = nn.functional.avg_pool2d(total, 3, 2, 1)
        padded = nn.functional.pad(total[:, 1:, :, 1:], (1, 2, 1, 1))
        return (
            self.strided(total), self.depthwise(scaled), self.up(y),
            torch.cat([pooled, averaged], 1), padded, torch.cat([x, y, total], 1),
            nn.functional.interpolate(total, scale_factor=2.0, mode="nearest"),
            self.dense(torch.flatten(nn.functional.adaptive_avg_pool2d(scaled, 1), 1)),
            torch.flatten(y, 1),
            torch.softmax(torch.flatten(self.strided(total), 1), 1),
            nn.functional.interpolate(y, size=(19, 33), mode="bilinear", align_corners=False),
            torch.exp(torch.flatten(x, 2)),
        )  # fmt: skip


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """The network quantized for an input shape, each shape once."""
    found = {}

    def quantized(shape):
        if shape not in found:
            path = tmp_path_factory.mktemp("odd") / "network.onnx"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = EveryKind(shape[0])
            network.eval().requires_grad_(False)
            network = compile_network(export_onnx(network, path, shape), images_of(shape, count=2))
            found[shape] = network.quantized, network.images[:1]
            found[shape] += (simulate(*found[shape]),)
        return found[shape]

    return quantized


def check(quantized, images, expected, out, target, threads):
    build(quantized, out=out, target=target, threads=threads)
    outputs = as_tuple(load(out)(images))
    for i, (found, reference) in enumerate(zip(outputs, expected, strict=True)):
        if i < len(expected) - FLOAT:
            np.testing.assert_array_equal(found, reference)
        else:
            np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-5)


def test_an_odd_map_in_two_threads(every_kind, tmp_path):
    """More than 8192 elements, divided by nothing: the smallest map that has tails everywhere."""
    check(*every_kind((5, 33, 127)), tmp_path / "library", "haswell", 2)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "threads"), TARGETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_kernel(shape, target, threads, every_kind, tmp_path):
    check(*every_kind(shape), tmp_path / "library", target, threads)


def test_functions_of_one_number(tmp_path):
    """A batch that the model fixes at 1 may vanish with the last axis: a tensor without axes."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceMax", ["r"], ["m"], keepdims=0),
        helper.make_node("Sub", ["m", "c"], ["d"]),
        helper.make_node("Sigmoid", ["d"], ["y"]),
        helper.make_node("Tanh", ["m"], ["t"]),
        helper.make_node("Mul", ["r", "t"], ["z"]),
    ]
    shapes = {"x": [1, 3, 4, 4], "y": [], "z": [1, 3, 4, 4]}
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    constant = numpy_helper.from_array(np.float32(1.5), "c")
    graph = helper.make_graph(nodes, "one", [values["x"]], [values["y"], values["z"]], [constant])
    imported = tvmquant.load_onnx(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    )
    images = np.random.default_rng(0).normal(size=(4, 3, 4, 4)).astype(np.float32)
    quantized = tvmquant.quantize(imported, tvmquant.calibrate(imported, images))
    tvmquant.build(quantized, out=tmp_path / "library")
    found = tvmquant.load(tmp_path / "library")(images[:1])
    for expected, output in zip(tvmquant.simulate(quantized, images[:1]), found, strict=True):
        np.testing.assert_array_equal(output, expected)
