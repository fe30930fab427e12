"""Convolutions and dense layers of the QOperator format compute as before.

Scales are powers of two, with which QDQ is exact, ties included.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tvmquant.errors import ModelError
from tvmquant.frontend import load_onnx

MICROSOFT = {"com.microsoft": 1}
TYPES = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
# of inputs and weights; ONNX Runtime has no others
TYPE_PAIRS = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]
CHANNELS = np.float32(2.0) ** np.array([-6, -4, -5, -3], np.float32)


def draw(dtype, *shape):
    """Draw integers of a type, its extremes among them."""
    limits = np.iinfo(dtype)
    return np.random.default_rng(3).integers(limits.min, limits.max + 1, shape).astype(dtype)


def draw_weight(dtype, *shape):
    """Draw weights of 7 bits: with more, ONNX Runtime saturates on machines without VNNI."""
    return (draw(np.int8, *shape) // 2).astype(dtype) + dtype(64 if dtype is np.uint8 else 0)


def names_by_operator(model):
    return {node.op_type: node.name for node in model.graph.node}


def conv_model(make_model, x_type, w_type, *, channels, domain="", bias=True, **attributes):
    """Return a QLinearConv of an input (N, 3, 9, 7), or one with channels last."""
    middle = 64 if w_type is np.uint8 else 0
    # ONNX Runtime takes one zero point for all channels
    w_zero = np.full(4, middle) if channels else middle + 3 * (w_type is np.uint8)
    constants = {
        "xs": np.float32(1 / 16),
        "xz": x_type(7),
        "w": draw_weight(w_type, 4, 3, 3, 2),
        "ws": CHANNELS if channels else np.float32(1 / 32),
        "wz": np.asarray(w_zero, w_type),
        "ys": np.float32(1 / 2),
        "yz": x_type(30),
        "b": np.array([1000, -2000, 0, 30], np.int32),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"] + ["b"] * bias
    node = helper.make_node(
        "QLinearConv", names, ["y"], name="conv", domain=domain, strides=[2, 1],
        pads=[1, 0, 1, 1], dilations=[1, 2], **attributes,
    )  # fmt: skip
    shape = (2, 9, 7, 3) if attributes.get("channels_last") else (2, 3, 9, 7)
    model = make_model(
        [node], {"x": shape}, constants=constants, element=TYPES[x_type], opset=21,
        domains={domain: 1} if domain else {},
    )  # fmt: skip
    return model, {"x": draw(x_type, *shape)}


@pytest.mark.parametrize(("x_type", "w_type"), TYPE_PAIRS)
@pytest.mark.parametrize("channels", [False, True])
def test_conv(make_model, equal_to_original, x_type, w_type, channels):
    model, inputs = conv_model(make_model, x_type, w_type, channels=channels)
    names = names_by_operator(equal_to_original(model, inputs))
    assert names["Conv"] == "conv"
    assert names["QuantizeLinear"] == "conv/QuantizeLinear"


@pytest.mark.parametrize("channels", [False, True])
def test_conv_with_channels_last(make_model, equal_to_original, channels):
    """Its weight has the layout that it has in other convolutions."""
    model, inputs = conv_model(
        make_model, np.uint8, np.int8, channels=channels, domain="com.microsoft", channels_last=1
    )
    result = equal_to_original(model, inputs)
    assert [node.op_type for node in result.graph.node][-1] == "Transpose"


def test_conv_without_bias_in_groups(make_model, equal_to_original):
    constants = {
        "s": np.float32(1 / 4),
        "z": np.uint8(100),
        "w": draw_weight(np.int8, 6, 1, 3),
        "ws": np.float32([1 / 4]),  # one number, with a dimension
        "wz": np.int8(0),
    }
    names = ["x", "s", "z", "w", "ws", "wz", "s", "z"]
    node = helper.make_node("QLinearConv", names, ["y"], group=3, auto_pad="SAME_LOWER")
    shape = (1, 3, 11)
    model = make_model([node], {"x": shape}, constants=constants, element=2, opset=13)
    equal_to_original(model, {"x": draw(np.uint8, *shape)})


def test_scales_that_the_file_computes(make_model, rewritten):
    """A bias has the product of the scales, which is known if they are."""
    nodes = [
        helper.make_node("Constant", [], ["xs"], value_float=0.5),
        helper.make_node("Mul", ["half", "eighths"], ["ws"]),
        helper.make_node("QLinearConv", ["x", "xs", "z", "w", "ws", "wz", "xs", "z", "b"], ["y"]),
    ]
    constants = {
        "half": np.float32(0.5),
        "eighths": np.arange(1, 5, dtype=np.float32) / 8,
        "z": np.uint8(0),
        "w": draw_weight(np.int8, 4, 3, 1, 1),
        "wz": np.int8(0),
        "b": np.arange(4, dtype=np.int32),
    }
    result = rewritten(
        make_model(nodes, {"x": (1, 3, 2, 2)}, constants=constants, element=2, opset=21)
    )
    (bias,) = [node for node in result.graph.node if "b" in node.input]
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    np.testing.assert_array_equal(scales[bias.input[1]], np.float32([1, 2, 3, 4]) / 32)


@pytest.mark.parametrize(("x_type", "w_type"), TYPE_PAIRS)
@pytest.mark.parametrize("scale_shape", [(), (4,), (1, 4)])
def test_matmul(make_model, equal_to_original, x_type, w_type, scale_shape):
    middle = 64 if w_type is np.uint8 else 0
    scale = CHANNELS.reshape(scale_shape) if scale_shape else np.float32(1 / 32)
    constants = {
        "as": np.float32(1 / 16),
        "az": x_type(7),
        "b": draw_weight(w_type, 5, 4),
        "bs": scale,
        "bz": np.full(scale_shape, middle, w_type),
        "ys": np.float32(2),
        "yz": x_type(30),
    }
    names = ["x", "as", "az", "b", "bs", "bz", "ys", "yz"]
    node = helper.make_node("QLinearMatMul", names, ["y"], name="dense")
    shape = (3, 2, 5)
    model = make_model([node], {"x": shape}, constants=constants, element=TYPES[x_type], opset=21)
    result = equal_to_original(model, {"x": draw(x_type, *shape)})
    assert names_by_operator(result)["MatMul"] == "dense"


def test_matmul_with_scales_for_each_matrix_and_column(make_model, rewritten, run):
    """ONNX's reference takes them, ONNX Runtime does not."""
    constants = {
        "s": np.float32(1 / 4),
        "z": np.uint8(9),
        "b": draw_weight(np.int8, 2, 5, 4),
        "bs": np.stack([CHANNELS, CHANNELS[::-1]]).reshape(2, 1, 4),
        "bz": np.zeros((2, 1, 4), np.int8),
        "ys": np.float32(2),
    }
    node = helper.make_node("QLinearMatMul", ["x", "s", "z", "b", "bs", "bz", "ys", "z"], ["y"])
    shape = (2, 3, 5)
    model = make_model([node], {"x": shape}, constants=constants, element=2, opset=21)
    inputs = {"x": draw(np.uint8, *shape)}
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    np.testing.assert_array_equal(run(rewritten(model), inputs)[0], expected)


def test_matmul_of_two_tensors_and_scales_for_each_row(make_model, rewritten, run):
    constants = {
        "as": CHANNELS[:3],
        "az": np.uint8([1, 2, 3]),
        "s": np.float32(1 / 4),
        "z": np.uint8(9),
    }
    node = helper.make_node("QLinearMatMul", ["x", "as", "az", "x", "s", "z", "s", "z"], ["y"])
    model = make_model([node], {"x": (3, 3)}, constants=constants, element=2, opset=21)
    inputs = {"x": draw(np.uint8, 3, 3)}
    real = (inputs["x"] - np.float32([[1], [2], [3]])) * CHANNELS[:3, None]
    product = real @ ((inputs["x"] - np.float32(9)) / 4) * 4
    expected = np.clip(np.round(product) + 9, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(run(rewritten(model), inputs)[0], expected)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_gemm(make_model, equal_to_original, transposed, channels, quantized):
    weight = draw_weight(np.int8, 5, 4)
    constants = {
        "as": np.float32(1 / 16),
        "az": np.uint8(7),
        "b": np.ascontiguousarray(weight.T) if transposed else weight,
        "bs": CHANNELS if channels else np.float32(1 / 32),
        "bz": np.zeros(4 if channels else (), np.int8),
        "c": np.array([10, -20, 0, 300], np.int32),
        "ys": np.float32(2),
        "yz": np.uint8(30),
    }
    names = ["x", "as", "az", "b", "bs", "bz", "c"] + ["ys", "yz"] * quantized
    node = helper.make_node(
        "QGemm", names, ["y"], domain="com.microsoft", transB=transposed, alpha=2.0
    )
    model = make_model(
        [node], {"x": (3, 5)}, constants=constants, element=2, opset=21, domains=MICROSOFT,
        output_element=2 if quantized else 1,
    )  # fmt: skip
    equal_to_original(model, {"x": draw(np.uint8, 3, 5)})


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["x", "s", "z", "w", "s", "z", "s"], "input 7 is missing"),
        (["x", "s", "z", "", "s", "z", "s", "z"], "input 3 is missing"),
        (["x", "s", "z", "w", "s", "z", "s", "z", "b", "b"], "it has 10 inputs"),
    ],
)
def test_nodes_with_too_few_or_many_inputs_are_named(make_model, names, found):
    constants = {
        "s": np.float32(1),
        "z": np.uint8(0),
        "w": np.zeros((1, 3, 1, 1), np.uint8),
        "b": np.zeros(1, np.int32),
    }
    node = helper.make_node("QLinearConv", names, ["y"], name="conv")
    model = make_model([node], {"x": (1, 3, 2, 2)}, constants=constants, element=2)
    with pytest.raises(ModelError, match=rf"node 'conv' \(QLinearConv\): {found}, expected 8 to 9"):
        load_onnx(model)
