"""Networks of signals, from an ONNX file to a library: integers throughout."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tvmquant.networks import check_library, compile_network, float_outputs, sqnr_db
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.simulator import simulate

RNG = np.random.default_rng(0)


def write(path, nodes, shape, weights):
    """Write a model from ``x`` to ``y``; weights are drawn by their shapes."""
    initialisers = [
        numpy_helper.from_array(
            value if isinstance(value, np.ndarray)
            else (RNG.standard_normal(value) / np.sqrt(np.prod(value[1:]))).astype(np.float32), name
        )
        for name, value in weights.items()
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "signals",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initialisers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """A waveform network with a residual, a depthwise layer, both pools and an upsampling."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["a"], "stem", strides=[4], pads=[2, 2]),
        node("BatchNormalization", ["a", "g", "b", "m", "v"], ["n"], "norm"),
        node("Relu", ["n"], ["r"], "relu"),
        node("Conv", ["r", "w1"], ["d"], "depthwise", group=12, pads=[2, 0], dilations=[1]),
        node("Add", ["d", "r"], ["e"], "residual"),
        node("LeakyRelu", ["e"], ["f"], "leaky"),
        node("MaxPool", ["f"], ["p"], "max", kernel_shape=[2], strides=[2]),
        node("ConvTranspose", ["p", "w2"], ["t"], "up", strides=[2]),
        node("Concat", ["t", "f"], ["j"], "join", axis=1),
        node("AveragePool", ["j"], ["q"], "average", kernel_shape=[3], pads=[1, 1]),
        node("Conv", ["q", "w3"], ["h"], "head"),
        node("GlobalAveragePool", ["h"], ["y"], "global"),
    ]
    weights = {
        "w0": (12, 1, 5),
        "w1": (12, 1, 3),
        "w2": (12, 6, 2),
        "w3": (5, 18, 1),
        **{name: RNG.uniform(0.5, 1, 12).astype(np.float32) for name in "gbmv"},
    }
    path = write(tmp_path_factory.mktemp("audio") / "audio.onnx", nodes, (1, 64), weights)
    signals = RNG.standard_normal((8, 1, 64)).astype(np.float32)
    return compile_network(path, signals)


def test_a_network_of_signals_is_integers_throughout(tmp_path, audio):
    manifest = check_library(audio, tmp_path / "library")
    assert manifest.float_audit == []
    for reference, found in zip(
        float_outputs(audio), simulate(audio.quantized, audio.images), strict=True
    ):
        assert found.shape == (8, 5, 1)
        assert sqnr_db(reference, found) > 30


def test_consecutive_layers_of_signals_exchange_images(audio):
    names = [
        value.op.name
        for _, value in bindings_of(audio.quantized.module["main"])
        if hasattr(value, "op") and value.op.name != "relax.reshape"
    ]
    assert names.index("relax.permute_dims") == 1  # once into channels last, and once back
    assert names.count("relax.permute_dims") <= 2
    assert names.count(qop.REQUANTIZE) == 0


def test_efficient_channel_attention(tmp_path):
    """Global average -> a convolution over the channels as a signal -> sigmoid -> product."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["a"], "stem", pads=[1] * 4),
        node("Relu", ["a"], ["r"], "relu"),
        node("GlobalAveragePool", ["r"], ["p"], "pool"),
        node("Squeeze", ["p", "last"], ["s"], "squeeze"),
        node("Transpose", ["s"], ["t"], "transpose", perm=[0, 2, 1]),
        node("Conv", ["t", "w1"], ["c"], "over_channels", pads=[1, 1]),
        node("Transpose", ["c"], ["u"], "back", perm=[0, 2, 1]),
        node("Unsqueeze", ["u", "last"], ["v"], "unsqueeze"),
        node("Sigmoid", ["v"], ["g"], "gate"),
        node("Mul", ["r", "g"], ["y"], "scale"),
    ]
    weights = {"w0": (8, 3, 3, 3), "w1": (1, 1, 3), "last": np.array([-1], np.int64)}
    path = write(tmp_path / "eca.onnx", nodes, (3, 6, 6), weights)
    images = RNG.standard_normal((8, 3, 6, 6)).astype(np.float32)
    network = compile_network(path, images)
    assert check_library(network, tmp_path / "library").float_audit == []
    assert sqnr_db(float_outputs(network)[0], simulate(network.quantized, images)[0]) > 30
