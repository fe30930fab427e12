"""Layers of a few bits among others, from choices and from quantizers, to libraries."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from tests.tvmquant.networks import Compiled, check_library, compile_network, images_of
from tvmquant.allocation import allocate
from tvmquant.bit_choice import BitChoice
from tvmquant.export import to_onnx
from tvmquant.layers import quantizable_layers
from tvmquant.passes import pipeline
from tvmquant.quantization import apply_calibration
from tvmquant.simulator import simulate

SHAPE = (3, 10, 10)
QONNX = "qonnx.custom_op.general"
# by layer: what it is to hold, and the types of its kernel; bits of whole words are counted
LAYERS = {
    "stem": ("w8a8", "u8s8s32"),
    "strided": ("w1a2", "u2s1s32"),
    "dilated": ("w2a1", "u1s2s32"),
    "pointwise": ("w1a1", "u1s1s32"),
    "narrow": ("w1a3", "u3s1s32"),
    "depthwise": ("w1a2", ""),
    "odd": ("w2a1", "u8s4s32"),
    "grouped": ("w1a3", "u8s4s32"),
    "head": ("w1a2", "u2s1s32"),
}


class Network(nn.Module):
    """A layer for each choice, and some that no kernel of bits computes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.strided = nn.Conv2d(64, 32, 3, 2, 1)
        self.dilated = nn.Conv2d(32, 64, 3, padding=2, dilation=2)
        self.pointwise = nn.Conv2d(64, 96, 1)
        self.narrow = nn.Conv2d(96, 40, 3, padding=(0, 1))
        self.depthwise = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.odd = nn.Conv2d(40, 64, 3, padding=1)
        self.grouped = nn.Conv2d(64, 32, 3, padding=1, groups=2)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        for name in list(LAYERS)[:-1]:
            x = getattr(self, name)(x)
            x = x.relu() if name != "strided" else x
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    network = Network().eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    path = export_onnx(network, tmp_path_factory.mktemp("onnx") / "net.onnx", SHAPE)
    graph, images = tvmquant.load_onnx(path), images_of(SHAPE)
    return graph, tvmquant.calibrate(graph, images, batch_size=len(images)), images


@pytest.fixture(scope="module")
def compiled(subject):
    graph, calibration, images = subject
    layers = quantizable_layers(graph)
    held = [BitChoice.parse(choice) for choice, _ in LAYERS.values()]
    choices = {layer.id: choice for layer, choice in zip(layers, held, strict=True)}
    annotated = apply_calibration(graph, calibration, choices=choices)
    quantized = annotated.with_module(pipeline.integerize(annotated.module), "L2")
    return Compiled(graph, annotated, quantized, images)


@pytest.mark.parametrize("target", ["native", "llvm -mcpu=haswell", "llvm -mcpu=x86-64"])
def test_the_library_computes_what_is_simulated(compiled, target, tmp_path):
    manifest = check_library(compiled, tmp_path / "out", batch=2, target=target)
    assert not manifest.float_audit
    calls = [layer for layer in manifest.layers if layer.choice]
    for layer, (choice, types) in zip(calls, LAYERS.values(), strict=True):
        assert layer.choice == choice
        assert types in layer.kernel


def test_what_is_exported_and_imported_again_gives_the_same_integers(compiled):
    model = to_onnx(compiled.annotated).model
    onnx.checker.check_model(model, full_check=True)
    again = tvmquant.load_onnx(model)
    assert [str(layer.usual) for layer in quantizable_layers(again)] == [
        choice for choice, _ in LAYERS.values()
    ]
    (expected,) = simulate(compiled.quantized, compiled.images)
    (found,) = simulate(tvmquant.quantize(again), compiled.images)
    np.testing.assert_array_equal(found, expected)


def test_the_program_offers_them(subject):
    layers = quantizable_layers(subject[0])
    choices = [BitChoice.parse(name) for name in ("w8a8", "w1a2", "w2a1")]
    omega = {layer.id: {"w8a8": 0.0, "w1a2": 0.1, "w2a1": 0.2} for layer in layers}
    plan = allocate(layers, omega, size="0.3x", choices=choices).choices
    assert {str(choice) for choice in plan.values()} == {"w8a8", "w1a2"}


@pytest.mark.parametrize(
    ("bits", "signed", "choice", "types"),
    [(2, 0, "w1a2", "u2s1s32"), (2, 1, "w1a2", "u2s1s32"), (3, 1, "w1a3", "u3s1s32")],
)
def test_quantizers_of_a_file_are_counted(bits, signed, choice, types, tmp_path):
    """Weights of two values behind activations of 2 or 3 bits, with a sign or without."""
    rng = np.random.default_rng(0)
    constants = {
        "w8": rng.standard_normal((32, 3, 3, 3)), "w1": rng.choice([-0.31, 0.31], (40, 32, 3, 3)),
        "s8": 0.023, "s": 0.83, "sw": 0.31, "z": 0.0, "b8": 8.0, "b": float(bits),
    }  # fmt: skip
    constants["xs"] = 0.05
    initializers = [
        onnx.numpy_helper.from_array(np.asarray(v, np.float32), name)
        for name, v in constants.items()
    ]

    def quantized(x, scale, width, result, sign=1):
        inputs = [x, scale, "z", width]
        return helper.make_node("Quant", inputs, [result], domain=QONNX, signed=sign)

    nodes = [
        quantized("x", "xs", "b8", "xq"),
        quantized("w8", "s8", "b8", "w8q"),
        helper.make_node("Conv", ["xq", "w8q"], ["c"], name="eight", pads=[1] * 4),
        quantized("c", "s", "b", "cq", signed),
        helper.make_node("BipolarQuant", ["w1", "sw"], ["w1q"], domain=QONNX),
        helper.make_node("Conv", ["cq", "w1q"], ["d"], name="few", pads=[1] * 4),
        quantized("d", "s", "b8", "y"),
    ]
    x, y = (helper.make_tensor_value_info(n, 1, ("N", c, 6, 6)) for n, c in (("x", 3), ("y", 40)))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(QONNX, 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], initializers), opset_imports=opsets, ir_version=10
    )
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    images = rng.standard_normal((4, 3, 6, 6)).astype(np.float32)
    network = compile_network(path, images)
    assert [str(layer.usual) for layer in quantizable_layers(network.graph)] == ["w8a8", choice]
    manifest = check_library(network, tmp_path / "out", batch=4)
    assert any(types in layer.kernel for layer in manifest.layers)
    level = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    step, integers = np.float32(0.05), np.clip(np.rint(images / np.float32(0.05)), -128, 127)
    weight = np.rint(np.float32(constants["w8"]) / np.float32(0.023)).clip(-128, 127)
    convolve = torch.nn.functional.conv2d
    real = convolve(torch.tensor(integers * step), torch.tensor(weight * 0.023).float(), padding=1)
    codes = np.clip(np.rint(real.numpy() / np.float32(0.83)), *level)
    signs = np.sign(constants["w1"])
    sums = convolve(torch.tensor(codes).double(), torch.tensor(signs), padding=1).numpy()
    expected = np.clip(np.rint(sums * 0.31), -128, 127) * 0.83
    (found,) = simulate(network.quantized, images)
    assert np.mean(np.abs(found - expected) < 1e-4) > 0.95  # sums of float32 lie beside ties
