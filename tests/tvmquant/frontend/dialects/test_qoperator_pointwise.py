"""Arithmetic, activations and concatenation of the QOperator format compute as before."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.frontend.dialects import rewrite_model
from tvmquant.frontend.prepare import prepare

MICROSOFT = {"com.microsoft": 1}
TYPES = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
# every byte once
SHAPE = (2, 8, 16)


def levels(dtype):
    return np.arange(256).astype(np.uint8).view(dtype).reshape(SHAPE)


def parameters(dtype):
    """Return scales and zero points of three tensors; those of the output are the last."""
    shift = -100 if dtype is np.int8 else 0
    return {
        "as": np.float32(1 / 16), "az": dtype(120 + shift),
        "bs": np.float32(1 / 8), "bz": dtype(90 + shift),
        "ys": np.float32(1 / 4), "yz": dtype(60 + shift),
    }  # fmt: skip


def model_of(make_model, dtype, op_type, inputs, constants=None, names=("x",), **attributes):
    node = helper.make_node(
        op_type, inputs, ["y"], name="node", domain="com.microsoft", **attributes
    )
    return make_model(
        [node], dict.fromkeys(names, SHAPE), constants={**parameters(dtype), **(constants or {})},
        element=TYPES[dtype], opset=21, domains=MICROSOFT,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_arithmetic_of_two_tensors(make_model, equal_to_original, dtype, operator):
    inputs = ["x", "as", "az", "b", "bs", "bz", "ys", "yz"]
    model = model_of(make_model, dtype, f"QLinear{operator}", inputs, names=("x", "b"))
    data = {"x": levels(dtype), "b": np.ascontiguousarray(levels(dtype)[::-1, :, ::-1])}
    result = equal_to_original(model, data)
    assert {node.op_type: node.name for node in result.graph.node}[operator] == "node"


def test_zero_points_left_out_are_zero_of_the_type_of_the_input(make_model, rewritten):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "as", "az"], ["q"]),
        helper.make_node("Transpose", ["q"], ["t"], perm=[1, 0]),
        helper.make_node(
            "QLinearAdd", ["t", "as", "", "t", "bs", "", "ys"], ["u"], domain="com.microsoft"
        ),
        helper.make_node("DequantizeLinear", ["u", "ys"], ["y"]),
    ]
    model = make_model(
        nodes, {"x": (2, 3)}, constants=parameters(np.int8), opset=21, domains=MICROSOFT
    )
    result = rewritten(model)
    (node,) = [node for node in result.graph.node if node.output[0] == "u"]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    zero_point = constants[node.input[2]]
    assert (zero_point.dtype, zero_point.shape, zero_point) == (np.int8, (), 0)


def test_an_output_without_zero_point_whose_type_nothing_tells_is_refused(make_model):
    nodes = [
        helper.make_node("Unknown", ["x"], ["q"], domain="my.ops"),
        helper.make_node(
            "QLinearSigmoid", ["q", "as", "", "ys"], ["y"], domain="com.microsoft", name="s"
        ),
    ]
    domains = {**MICROSOFT, "my.ops": 1}
    model = make_model(nodes, {"x": (2, 3)}, constants=parameters(np.int8), domains=domains)
    with pytest.raises(
        UnsupportedModelError, match=r"s \(.*QLinearSigmoid\): its output has no zero point"
    ):
        load_onnx(model)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("operator", "attributes"), [("LeakyRelu", {"alpha": 0.25}), ("LeakyRelu", {}), ("Sigmoid", {})]
)
def test_activations(make_model, equal_to_original, dtype, operator, attributes):
    inputs = ["x", "as", "az", "bs", "bz"]
    model = model_of(make_model, dtype, f"QLinear{operator}", inputs, **attributes)
    equal_to_original(model, {"x": levels(dtype)})


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [None, 1])
def test_softmax(make_model, equal_to_original, dtype, axis):
    scale = {"ys": np.float32(1 / 256), "yz": dtype(np.iinfo(dtype).min)}
    inputs = ["x", "as", "az", "ys", "yz"]
    model = model_of(make_model, dtype, "QLinearSoftmax", inputs, scale, opset=13, axis=axis)
    equal_to_original(model, {"x": levels(dtype)}, ties=0.001)


def test_softmax_of_an_older_opset_runs_over_all_axes_from_its_own_on(make_model, run):
    scale = {"ys": np.float32(1 / 256), "yz": np.uint8(0)}
    inputs = ["x", "as", "az", "ys", "yz"]
    model = model_of(make_model, np.uint8, "QLinearSoftmax", inputs, scale, opset=12, axis=1)
    nodes = rewrite_model(prepare(model, "test"))[0].nodes
    (softmax,) = [node for node in nodes if node.op_type == "Softmax"]
    assert softmax.opset < 13
    assert softmax.attributes == {"axis": 1}
    exponents = np.exp((levels(np.uint8).reshape(2, -1) - np.float32(120)) / 16)
    expected = np.round(exponents / exponents.sum(axis=1, keepdims=True) * 256).reshape(SHAPE)
    np.testing.assert_array_equal(run(model, {"x": levels(np.uint8)})[0], expected)


def test_concat(make_model, equal_to_original):
    inputs = ["ys", "yz", "x", "as", "az", "b", "bs", "bz", "x", "bs", "bz"]
    model = model_of(make_model, np.uint8, "QLinearConcat", inputs, names=("x", "b"), axis=1)
    result = equal_to_original(model, {"x": levels(np.uint8), "b": levels(np.uint8) // 2})
    # the input that is read with two scales has two real values
    assert [node.op_type for node in result.graph.node].count("DequantizeLinear") == 3


def test_concat_without_the_scale_of_a_tensor(make_model):
    inputs = ["ys", "yz", "x", "as", "az", "x"]
    model = model_of(make_model, np.uint8, "QLinearConcat", inputs, axis=1)
    with pytest.raises(
        UnsupportedModelError, match="it has 4 inputs after its output's zero point"
    ):
        load_onnx(model)


def test_where(make_model, equal_to_original):
    condition = {"c": np.arange(16) % 3 == 0}
    inputs = ["c", "x", "as", "az", "b", "bs", "bz", "ys", "yz"]
    model = model_of(make_model, np.int8, "QLinearWhere", inputs, condition, names=("x", "b"))
    equal_to_original(model, {"x": levels(np.int8), "b": levels(np.int8)[::-1].copy()})


def test_tensors_are_dequantized_once_for_each_scale(make_model, rewritten):
    inputs = ["x", "as", "az", "x", "as", "az", "ys", "yz"]
    model = model_of(make_model, np.uint8, "QLinearAdd", inputs)
    operators = [node.op_type for node in rewritten(model).graph.node]
    assert operators == ["DequantizeLinear", "Add", "QuantizeLinear"]


def test_quantizers_of_onnx_runtime_are_those_of_onnx(make_model, equal_to_original):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], domain="com.microsoft", axis=1),
        helper.make_node(
            "DequantizeLinear", ["q", "s", "z"], ["f"], domain="com.microsoft", axis=1
        ),
        helper.make_node(
            "QuantizeLinear", ["f", "t", "u"], ["y"], domain="com.microsoft", name="last"
        ),
    ]
    constants = {
        "s": np.float32([0.1, 0.2, 0.3]),
        "z": np.uint16([1, 2, 30000]),
        "t": np.float32(0.1),
        "u": np.int16(5),
    }
    model = make_model(
        nodes, {"x": (2, 3, 4)}, constants=constants, opset=13, domains=MICROSOFT,
        output_element=TensorProto.INT16,
    )  # fmt: skip
    data = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32) * 50
    result = equal_to_original(model, {"x": data})
    assert result.graph.node[-1].name == "last"
