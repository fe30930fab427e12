"""Arithmetic, clips and softmax equal ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import ModelError, UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 5, 4)}


def unary(make_model, kind, opset=20, **attributes):
    return make_model([helper.make_node(kind, ["x"], ["y"], **attributes)], IMAGE, opset=opset)


PLAIN = {
    "Abs": "abs",
    "Ceil": "ceil",
    "Cos": "cos",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "Gelu": "nn.gelu",
    "LeakyRelu": "nn.leakyrelu",
    "Neg": "negative",
    "Relu": "nn.relu",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Tanh": "tanh",
    "Asinh": "asinh",
    "Atan": "atan",
    "Cosh": "cosh",
    "Sinh": "sinh",
    "Tan": "tan",
}


@pytest.mark.parametrize("kind", PLAIN)
def test_one_operator_for_one(make_model, compare, operators, kind):
    assert operators(compare(unary(make_model, kind))) == [PLAIN[kind]]


@pytest.mark.parametrize("kind", ["Acos", "Acosh", "Asin", "Atanh"])
def test_functions_of_an_interval(make_model, compare, kind):
    nodes = [helper.make_node("Softmax", ["x"], ["s"], axis=1)]
    if kind == "Acosh":
        nodes.append(helper.make_node("Exp", ["s"], ["e"]))
    nodes.append(helper.make_node(kind, ["e" if kind == "Acosh" else "s"], ["y"]))
    compare(make_model(nodes, IMAGE))


@pytest.mark.parametrize("kind", ["Sqrt", "Log", "Reciprocal"])
def test_functions_of_positive_numbers(make_model, compare, kind):
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node(kind, ["e"], ["y"])]
    compare(make_model(nodes, IMAGE))


@pytest.mark.parametrize(("kind", "bound"), [("Max", -np.inf), ("Min", np.inf)])
def test_a_bound_that_is_none_is_left_out(make_model, compare, operators, kind, bound):
    nodes = [helper.make_node(kind, ["c", "x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    model = make_model(nodes, IMAGE, constants={"c": np.float32(bound)})
    assert operators(compare(model)) == ["nn.relu"]


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_binary_operators_broadcast(make_model, compare, kind):
    constant = np.array([1.5, -0.5, 2.0], np.float32).reshape(3, 1, 1)
    node = helper.make_node(kind, ["x", "c"], ["y"])
    compare(make_model([node], IMAGE, constants={"c": constant}))


def test_operators_of_any_number_of_operands(make_model, compare, operators):
    nodes = [
        helper.make_node("Max", ["x"], ["a"]),
        helper.make_node("Sum", ["a", "z", "a"], ["y"]),
    ]
    graph = compare(make_model(nodes, {"x": ("N", 3, 4), "z": ("N", 1, 4)}))
    assert operators(graph) == ["add", "add"]


@pytest.mark.parametrize("exponent", [np.float32(2), np.int64(3), np.float32(5)])
def test_constant_powers(make_model, compare, exponent):
    node = helper.make_node("Pow", ["x", "c"], ["y"])
    compare(make_model([node], IMAGE, constants={"c": exponent}), tolerance=1e-4)


CLIPS = {
    "both": ({"low": -0.5, "high": 0.5}, "clip"),
    "relu6": ({"low": 0.0, "high": 6.0}, "clip"),
    "low": ({"low": -0.5}, "clip"),
    "high": ({"high": 0.5}, "clip"),
    "relu": ({"low": 0.0}, "nn.relu"),
    "relu_with_largest_float": ({"low": 0.0, "high": np.finfo(np.float32).max}, "nn.relu"),
}


@pytest.mark.parametrize("case", CLIPS)
def test_clip_with_constant_limits(make_model, compare, operators, case):
    limits, expected = CLIPS[case]
    names = ["x", *(name if name in limits else "" for name in ("low", "high"))]
    constants = {name: np.float32(value) for name, value in limits.items()}
    model = make_model([helper.make_node("Clip", names, ["y"])], IMAGE, constants=constants)
    assert operators(compare(model)) == [expected]


def test_clip_before_opset_11(make_model, compare, operators):
    model = unary(make_model, "Clip", opset=10, min=0.0, max=6.0)
    assert operators(compare(model)) == ["clip"]


def test_clip_with_computed_limits(make_model, compare, operators):
    model = make_model([helper.make_node("Clip", ["x", "z"], ["y"])], {**IMAGE, "z": ()})
    assert operators(compare(model)) == ["maximum"]


def test_clip_with_a_computed_limit_and_an_infinite_one(make_model, compare, operators):
    model = make_model(
        [helper.make_node("Clip", ["x", "z", "c"], ["y"])],
        {**IMAGE, "z": ()},
        constants={"c": np.float32(np.inf)},
    )
    assert operators(compare(model)) == ["maximum"]


def test_clip_without_limits_vanishes(make_model, operators):
    nodes = [helper.make_node("Clip", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    assert operators(load_onnx(make_model(nodes, IMAGE))) == ["negative"]


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("opset", "attributes"), [(11, {}), (11, {"axis": 2}), (13, {"axis": 1})])
def test_softmax_of_old_and_new_opsets(make_model, compare, kind, opset, attributes):
    compare(unary(make_model, kind, opset=opset, **attributes))


def test_shapes_that_do_not_broadcast_are_rejected(make_model):
    node = helper.make_node("Add", ["x", "z"], ["y"], name="sum")
    model = make_model([node], {"x": ("N", 3, 4), "z": ("N", 2, 4)})
    with pytest.raises(UnsupportedModelError, match=r"sum \(Add\): .*\(N, 3, 4\) and \(N, 2, 4\)"):
        load_onnx(model)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_powers_whose_exponents_are_data(make_model, compare, dtype):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("Round", ["x"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=element),
        helper.make_node("Pow", ["a", "c"], ["y"]),
    ]
    compare(make_model(nodes, IMAGE))


def test_a_mask_of_infinities_is_chosen_not_added(make_model, compare, operators):
    mask = np.where(np.triu(np.ones((5, 4), bool), 1), -np.inf, 0).astype(np.float32)
    for shift, expected in ((0, ["where"]), (1, ["add", "where"])):
        nodes = [
            helper.make_node("Add", ["x", "c"], ["a"]),
            helper.make_node("Softmax", ["a"], ["y"], axis=-2),
        ]
        model = make_model(nodes, IMAGE, constants={"c": mask + np.float32(shift)})
        assert operators(compare(model)) == [*expected, "nn.softmax"]


@pytest.mark.parametrize(
    "bias", [np.full(4, -np.inf, "f"), np.full((5, 4), np.inf, "f"), np.full((5, 4), np.nan, "f")]
)
def test_infinities_that_are_no_mask_are_rejected(make_model, bias):
    node = helper.make_node("Add", ["x", "c"], ["y"], name="sum")
    with pytest.raises(ModelError, match=r"constant 'c' holds .*used by node 'sum'"):
        load_onnx(make_model([node], IMAGE, constants={"c": bias}))


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 4), []), ((), []), ((2, 1, 1, 1, 1), ["add"])]
)
def test_zeros_are_added_only_where_they_change_the_shape(make_model, operators, shape, expected):
    nodes = [helper.make_node("Add", ["c", "x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    model = make_model(nodes, {"x": (3, 5, 4)}, constants={"c": np.zeros(shape, np.float32)})
    assert operators(load_onnx(model)) == [*expected, "negative"]
