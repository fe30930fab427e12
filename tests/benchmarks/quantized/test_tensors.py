"""Quantized activations of a file: which there are, and copies of the file that are cut at them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.quantized import engines
from benchmarks.quantized.float64 import Float64Evaluator
from benchmarks.quantized.tensors import (
    given,
    integer_operators,
    last_tensors,
    layer_by_layer,
    quantized_tensors,
    result,
    with_shown,
)

SHAPE = (1, 4, 6, 6)


def pair(source, target, scale="s", zero_point="z", **attributes):
    """Quantize and dequantize, by nodes named after the result."""
    middle, constants = f"{target}_i", [scale, zero_point]
    return [
        helper.make_node("QuantizeLinear", [source, *constants], [middle], middle, **attributes),
        helper.make_node(
            "DequantizeLinear", [middle, *constants], [target], f"{target}_d", **attributes
        ),
    ]


@pytest.fixture
def model():
    """x -> Q/DQ -> Conv -> Relu -> Q/DQ (per channel) -> mean, which is float."""
    rng = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "sc": rng.uniform(0.01, 0.03, 8).astype(np.float32),
        "zc": np.zeros(8, np.uint8),
        "w": rng.integers(-90, 90, (8, 4, 3, 3)).astype(np.int8),
        "sw": np.float32(0.002),
        "b": rng.normal(size=8).astype(np.float32),
    }
    nodes = [
        *pair("x", "xd"),
        helper.make_node("DequantizeLinear", ["w", "sw"], ["wd"], "weight"),
        helper.make_node("Conv", ["xd", "wd", "b"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        *pair("r", "rd", "sc", "zc", axis=1),
        helper.make_node("GlobalAveragePool", ["rd"], ["y"], "mean"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def feeds():
    return {"x": np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)}


def saved(model, path):
    onnx.save(model, path)
    return path


def test_activations_are_found_and_weights_are_not(model):
    tensors = quantized_tensors(model)
    assert [(t.name, t.shown, t.step.size) for t in tensors] == [
        ("xd_i", "xd", 1),
        ("rd_i", "rd", 8),
    ]
    assert [t.name for t in last_tensors(model, tensors)] == ["rd_i"]


def test_steps_are_counted_along_the_axis_of_the_channels(model):
    _, tensor = quantized_tensors(model)
    steps = np.arange(8 * 3).reshape(1, 8, 3)
    np.testing.assert_array_equal(tensor.steps(steps * tensor.step.reshape(1, 8, 1)), steps)


def test_a_layer_on_its_own_computes_what_it_does_in_the_network(model, feeds, tmp_path):
    tensors = quantized_tensors(model)
    every = saved(with_shown(model, tensors), tmp_path / "every.onnx")
    (whole,) = engines.run_onnxruntime(every, [feeds])
    assert list(whole) == ["y", "xd", "rd"]
    cut = saved(layer_by_layer(model, tensors, {**feeds, **whole}), tmp_path / "cut.onnx")
    fed = {**feeds, **{given(t): whole[t.shown] for t in tensors}}
    (layers,) = engines.run_onnxruntime(cut, [fed])
    np.testing.assert_array_equal(layers["y"], whole["y"])
    for tensor in tensors:
        np.testing.assert_array_equal(layers[result(tensor)], whole[tensor.shown])
    # the second layer reads what it is given, not what the first one computes
    other = {**fed, given(tensors[0]): np.zeros(SHAPE, np.float32)}
    (changed,) = engines.run_onnxruntime(cut, [other])
    np.testing.assert_array_equal(changed[result(tensors[0])], whole["xd"])
    assert (changed[result(tensors[1])] != whole["rd"]).any()
    np.testing.assert_array_equal(changed["y"], whole["y"])


def test_float64_rounds_as_onnx_does(model, feeds, tmp_path):
    (expected,) = engines.run_onnxruntime(
        saved(with_shown(model, quantized_tensors(model)), tmp_path / "every.onnx"), [feeds]
    )
    ties = {"x": np.float32(0.05) * (np.arange(144).reshape(SHAPE) - 72 + np.float32(0.5))}
    evaluator = Float64Evaluator(with_shown(model, quantized_tensors(model)))
    for name, found in zip(expected, evaluator.run(list(expected), feeds), strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected[name], rtol=1e-6)
    (rounded,) = evaluator.run(["xd_i"], ties)
    exact = np.rint(ties["x"].astype(np.float64) / np.float32(0.05)) + 128
    np.testing.assert_array_equal(rounded, exact.clip(0, 255))


def test_what_dequantized_values_enter_and_quantizers_leave_is_in_integers(model):
    assert integer_operators(model) == {"conv", "relu"}
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    assert integer_operators(model) == set()


def test_operators_on_integers_have_a_scale_of_their_result():
    constants = {"s": np.float32(0.1), "z": np.uint8(3), "t": np.float32(0.2)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "begin"),
        helper.make_node(
            "QLinearAdd", ["q", "s", "z", "q", "s", "z", "t", "z"], ["a"], "add",
            domain="com.microsoft",
        ),
        helper.make_node("MaxPool", ["a"], ["p"], "pool", kernel_shape=[2, 2]),
        helper.make_node("DequantizeLinear", ["p", "t", "z"], ["y"], "end"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "operators",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph)
    tensors = quantized_tensors(model)
    assert [(t.node, t.scale, t.shown) for t in tensors] == [
        ("begin", "s", "q/shown"),
        ("add", "t", "a/shown"),
    ]
    assert [t.node for t in last_tensors(model, tensors)] == ["add"]
    assert integer_operators(model) == {"add", "pool"}
