"""Rewriting leaves other nodes alone, gives unique names, and meets damage with one error."""

import contextlib

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import ModelError
from tvmquant.frontend.dialects import rewrite_model
from tvmquant.frontend.dialects.registry import RULES
from tvmquant.frontend.load import load_onnx
from tvmquant.frontend.prepare import prepare
from tvmquant.frontend.support import find_unsupported

DOMAINS = ("com.microsoft", "qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
ATTRIBUTES = {
    "axis": [0, 7, -9, 1.5, "one", [1]],
    "alpha": [0.5, float("nan"), "much", [0.1]],
    "channels_last": [1, 2, "yes"],
    "kernel_shape": [[2, 2], [], [0, 1], 3, "wide"],
    "pads": [[1, 1, 1, 1], [1], -1],
    "opset": [13, 11, -1, "new"],
    "signed": [0, 5, "no"],
    "rounding_mode": ["ROUND", "UP", "", 1, [2.0]],
    "block_size": [2, 0, -1, 0.5],
    "keepdims": [0, "x"],
    "axes": [[1], [9], 2],
    "to": [1, 99],
}


def draw_constants(rng):
    """Return constants of many types and shapes, few of which fit."""
    shapes = [(), (1,), (0,), (2,), (3,), (1, 3), (3, 1, 1), (2, 3, 2, 2), (2, 3), (3, 2, 4)]
    types = [np.float32, np.int8, np.uint8, np.int32, np.uint16, np.float16, np.float64, np.int64]
    constants = {}
    for index in range(14):
        shape = shapes[rng.integers(len(shapes))]
        dtype = types[rng.integers(len(types)) if rng.random() < 0.7 else rng.integers(3)]
        array = np.asarray(rng.integers(-3, 9, shape)).astype(dtype)
        if array.dtype.kind == "f" and array.size and rng.random() < 0.2:
            array = np.full(shape, [np.nan, np.inf, 0, -1, 6e4][rng.integers(5)], dtype)
        constants[f"c{index}"] = array
    return constants


@pytest.mark.parametrize("op_type", sorted(RULES))
def test_damaged_nodes_never_cause_a_foreign_error(make_model, op_type):
    rng = np.random.default_rng(len(op_type))
    domain, _, name = op_type.rpartition(".")
    rule = RULES[op_type]
    for _ in range(40):
        constants = draw_constants(rng)
        count = int(rng.integers(max(rule.fewest - 1, 0), min(rule.most, rule.fewest + 4) + 2))
        choices = ["x", "x", "", *constants]
        inputs = [choices[rng.integers(len(choices))] for _ in range(count)]
        attributes = {
            key: values[rng.integers(len(values))]
            for key, values in ATTRIBUTES.items()
            if rng.random() < 0.3
        }
        attributes = {key: value for key, value in attributes.items() if value != []}
        node = helper.make_node(name, inputs, ["y"], name="n", domain=domain, **attributes)
        element = int(rng.choice([1, 2, 3, 6, 7]))
        shape = [("N", 3, 4, 4), ("N", 3), (2, 3, 2)][rng.integers(3)]
        model = make_model(
            [node], {"x": shape}, constants=constants, element=element,
            domains=dict.fromkeys(DOMAINS, 1),
        )  # fmt: skip
        with contextlib.suppress(ModelError):
            result, refused = rewrite_model(prepare(model, "test"))
            ranks = {key: array.ndim for key, array in result.constants.items()}
            find_unsupported("test", result.nodes, ranks, refused)


def test_other_nodes_stay_as_they_are(make_model):
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Foo", ["a"], ["y"])]
    prepared = prepare(make_model(nodes, {"x": (1, 2)}), "test")
    model, refused = rewrite_model(prepared)
    assert model.nodes == prepared.nodes
    assert model.constants.keys() == prepared.constants.keys()
    assert not refused


def test_names_that_are_taken_get_a_suffix(make_model, rewritten):
    """Those of nodes and of values, inner graphs included."""
    inputs = ["conv/x/DequantizeLinear_output", "s", "z", "w", "s", "wz", "s", "z"]
    nodes = [
        helper.make_node("Identity", ["x"], [inputs[0]], name="conv/x/DequantizeLinear"),
        helper.make_node("QLinearConv", inputs, ["y"], name="conv"),
    ]
    constants = {
        "s": np.float32(1),
        "z": np.uint8(0),
        "w": np.ones((1, 3, 1, 1), np.int8),
        "wz": np.int8(0),
    }
    model = make_model(nodes, {"x": (1, 3, 2, 2)}, constants=constants, element=2, opset=21)
    result = rewritten(model).graph
    names = [node.name for node in result.node]
    assert len(set(names)) == len(names)
    assert "conv" in names
    outputs = [name for node in result.node for name in node.output]
    assert len(set(outputs)) == len(outputs)


def test_branches_that_are_taken_are_rewritten_too(make_model):
    """Their constants may lie outside of them."""
    value = helper.make_tensor_value_info("inner", 1, None)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearSigmoid", ["q", "s", "", "s"], ["r"], domain="com.microsoft"),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["inner"]),
    ]
    branch = helper.make_graph(nodes, "g", [], [value])
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=branch)
    constants = {"s": np.float32(0.01), "z": np.uint8(3), "c": np.array(True)}
    model = make_model([node], {"x": ("N", 4)}, constants=constants, domains={"com.microsoft": 1})
    names = str(load_onnx(model).main)
    assert "sigmoid" in names
    assert "QLinearSigmoid_1/QuantizeLinear" in names


def test_long_chains_of_constants_are_computed_without_recursion(make_model, rewritten):
    count = 1500
    nodes = [helper.make_node("Identity", [f"s{i}"], [f"s{i + 1}"]) for i in range(count)]
    inputs = ["w", f"s{count}", "z", "b"]
    nodes.append(helper.make_node("Quant", inputs, ["q"], domain=DOMAINS[1]))
    nodes.append(helper.make_node("Mul", ["x", "q"], ["y"]))
    constants = {
        "w": np.ones(4, np.float32),
        "s0": np.float32(0.5),
        "z": np.float32(0),
        "b": np.float32(4),
    }
    model = make_model(
        nodes, {"x": ("N", 4)}, constants=constants, opset=21, domains={DOMAINS[1]: 1}
    )
    assert [node.op_type for node in rewritten(model).graph.node] == ["DequantizeLinear", "Mul"]
