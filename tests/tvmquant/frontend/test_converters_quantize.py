"""Quantized ONNX models keep their integers, scales and zero points."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 5, 4)}

TYPES = {
    "int8": (np.float32(0.1), np.int8(3)),
    "uint8": (np.float32(0.02), np.uint8(30)),
    "uint16": (np.float32(0.001), np.uint16(3000)),
    "per_channel": (np.array([0.1, 0.2, 0.05], np.float32), np.array([1, -2, 3], np.int8)),
    "int4": (np.float32(0.3), helper.make_tensor("z", TensorProto.INT4, [], [1])),
    "uint4": (np.float32(0.3), helper.make_tensor("z", TensorProto.UINT4, [], [7])),
}


@pytest.mark.parametrize("case", TYPES)
def test_quantize_and_dequantize(make_model, compare, operators, case):
    scale, zero = TYPES[case]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = compare(make_model(nodes, IMAGE, constants={"s": scale, "z": zero}, opset=21))
    narrow = ["clip"] if "int4" in case else []
    assert operators(graph) == ["quantize", *narrow, "dequantize"]


def test_quantize_without_zero_point_is_unsigned(make_model, compare):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    compare(make_model(nodes, IMAGE, constants={"s": np.float32(0.1)}))


def test_quantized_convolution_keeps_integer_weights(make_model, compare, operators):
    """4-bit weights live in int8; the 32-bit bias becomes a float constant."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "t"], ["bf"]),
        helper.make_node("Conv", ["x", "wf", "bf"], ["y"]),
    ]
    integers = [-8, 7, 1, 2, 3, -4, 5, -6, 1, 2, 3, 4]
    constants = {
        "w": helper.make_tensor("w", TensorProto.INT4, [4, 3, 1, 1], integers),
        "s": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "b": np.array([1, 2, -300, 4], np.int32),
        "t": np.float32(0.01),
    }
    graph = compare(make_model(nodes, IMAGE, constants=constants, opset=21))
    assert operators(graph) == ["dequantize", "nn.conv2d", "add"]
    weight = graph.main.body.blocks[0].bindings[0].value.args[0].value.numpy()
    assert weight.dtype == np.int8
    np.testing.assert_array_equal(weight.ravel(), integers)


def test_float_weights_behind_quantize_become_integers(make_model, compare, operators):
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["wf"]),
        helper.make_node("Conv", ["x", "wf"], ["y"]),
    ]
    weight = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3, 1, 1)
    constants = {"w": weight, "s": np.float32(0.01), "z": np.int8(0)}
    graph = compare(make_model(nodes, IMAGE, constants=constants))
    assert operators(graph) == ["dequantize", "nn.conv2d"]


@pytest.mark.parametrize("scale", [np.float32(0.01), np.array([0.1, 0.2, 0.3, 0.4], np.float32)])
def test_quantized_gemm_is_transposed_at_import(make_model, compare, operators, scale):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=0),
        helper.make_node("Gemm", ["x", "wf"], ["y"], transB=1),
    ]
    weight = np.arange(-10, 10, dtype=np.int8).reshape(4, 5)
    model = make_model(nodes, {"x": ("N", 5)}, constants={"w": weight, "s": scale})
    assert operators(compare(model)) == ["dequantize", "matmul"]


REJECTED = {
    "block_size": (np.float32(0.1), np.int8(0), {"block_size": 2}),
    "scale is": (np.float32(-0.1), np.int8(0), {}),
    "scale has shape": (np.array([0.1, 0.2], np.float32), np.zeros(2, np.int8), {}),
    "zero point": (np.array([0.1, 0.2, 0.3], np.float32), np.zeros(2, np.int8), {}),
    "float8": (np.float32(1.0), helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0]), {}),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_rejected_by_name(make_model, reason):
    scale, zero, attributes = REJECTED[reason]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="in", **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    model = make_model(nodes, IMAGE, constants={"s": scale, "z": zero}, opset=21)
    with pytest.raises(UnsupportedModelError, match=rf"in \(QuantizeLinear\): .*{reason}"):
        load_onnx(model)


def test_qoperator_models_are_told_to_use_qdq(make_model):
    names = ["x", "s", "z", "w", "s", "z", "s", "z"]
    node = helper.make_node("QLinearConv", names, ["y"], name="conv")
    constants = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "w": np.ones((1, 3, 1, 1), np.int8),
    }
    with pytest.raises(
        UnsupportedModelError, match=r"QOperator format \(node 'conv', .*import the float model"
    ):
        load_onnx(make_model([node], IMAGE, constants=constants))


def test_dynamically_quantized_models_are_refused_in_one_line(make_model):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="quantize"),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["a"], name="conv"),
        helper.make_node("Cast", ["a"], ["y"], to=1),
    ]
    weight = {"w": np.ones((1, 3, 1, 1), np.uint8)}
    with pytest.raises(UnsupportedModelError, match="is quantized dynamically") as error:
        load_onnx(make_model(nodes, IMAGE, constants=weight))
    assert "\n" not in str(error.value)
