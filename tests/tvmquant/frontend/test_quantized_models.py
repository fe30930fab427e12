"""Weights stored as integers become float constants; models quantized already are refused."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 5, 4)}
LEVELS = [-8, 7, 1, 2, 3, -4, 5, -6, 1, 2, 3, 4]
CHANNELS = np.array([0.1, 0.2, 0.3, 0.4], np.float32)


def stored(kind):
    """Return integers of shape (4, 3, 1, 1), their zero point and scale."""
    shape = [4, 3, 1, 1]
    if kind == "int4":
        tensor = helper.make_tensor("w", TensorProto.INT4, shape, LEVELS)
        return tensor, helper.make_tensor("z", TensorProto.INT4, [4], [0, 1, -2, 3]), CHANNELS
    if kind == "float8":
        tensor = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, shape, LEVELS)
        return tensor, helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0]), CHANNELS[0]
    levels = np.array(LEVELS).reshape(shape)
    if kind == "uint8":
        return (levels + 100).astype(np.uint8), np.full(4, 100, np.uint8), CHANNELS
    return levels.astype(np.int8), np.int8(3), CHANNELS[0]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "float8"])
def test_weights_behind_dequantize_become_float_constants(make_model, compare, operators, kind):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "t"], ["bf"]),
        helper.make_node("Conv", ["x", "wf", "bf"], ["y"]),
    ]
    weight, zero_point, scale = stored(kind)
    bias = {"b": np.array([1, 2, -300, 4], np.int32), "t": np.float32(0.01)}
    constants = {"w": weight, "z": zero_point, "s": scale, **bias}
    graph = compare(make_model(nodes, IMAGE, constants=constants, opset=21))
    assert operators(graph) == ["nn.conv2d", "add"]


def test_weights_quantized_in_blocks(make_model, compare, operators):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=0, block_size=2),
        helper.make_node("Gemm", ["x", "wf"], ["y"], transB=1),
    ]
    weight = np.arange(-10, 10, dtype=np.int8).reshape(4, 5)
    scale = np.linspace(0.1, 1.0, 10, dtype=np.float32).reshape(2, 5)
    model = make_model(nodes, {"x": ("N", 5)}, constants={"w": weight, "s": scale}, opset=21)
    assert operators(compare(model)) == ["matmul"]


def test_weights_rounded_in_the_model_become_constants(make_model, compare, operators):
    """As QuantizeLinear and back, or taken apart into arithmetic, of which rounding is a part."""
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["wf"]),
        helper.make_node("Conv", ["x", "wf"], ["c"]),
        helper.make_node("Div", ["v", "s"], ["d"]),
        helper.make_node("Round", ["d"], ["r"]),
        helper.make_node("Clip", ["r", "low", "high"], ["l"]),
        helper.make_node("Mul", ["l", "s"], ["vf"]),
        helper.make_node("Conv", ["c", "vf"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32),
        "v": rng.standard_normal((2, 4, 1, 1)).astype(np.float32),
        "s": np.float32(0.01),
        "z": np.int8(0),
        "low": np.float32(-127),
        "high": np.float32(127),
    }
    graph = compare(make_model(nodes, IMAGE, constants=constants))
    assert operators(graph) == ["nn.conv2d", "nn.conv2d"]


def refusal(model):
    with pytest.raises(UnsupportedModelError) as error:
        load_onnx(model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_quantized_activations_are_refused_in_one_line(make_model):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="in"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["f"], name="back"),
        helper.make_node("Det", ["f"], ["y"], name="other"),
    ]
    constants = {"s": np.float32(0.1), "z": np.int8(0)}
    text = refusal(make_model(nodes, IMAGE, constants=constants))
    assert "'test' is quantized in the QDQ format, which is not supported yet" in text
    assert "(node 'in', QuantizeLinear); export the float model" in text


def test_integer_operators_are_refused_in_one_line(make_model):
    names = ["x", "s", "z", "w", "s", "z", "s", "z"]
    node = helper.make_node("QLinearConv", names, ["y"], name="conv")
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((1, 3, 1, 1), np.int8)}
    text = refusal(make_model([node], IMAGE, constants=constants))
    assert "is quantized in the QOperator format (node 'conv', QLinearConv)" in text


def test_dynamically_quantized_models_are_refused_in_one_line(make_model):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="quantize"),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["a"], name="conv"),
        helper.make_node("Cast", ["a"], ["y"], to=1),
    ]
    weight = {"w": np.ones((1, 3, 1, 1), np.uint8)}
    assert "is quantized dynamically" in refusal(make_model(nodes, IMAGE, constants=weight))
