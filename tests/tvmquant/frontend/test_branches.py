"""An ``If`` whose condition is known at import is replaced by the branch it takes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmquant.errors import ModelError, UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 6, 6)}


def branch(nodes, output, constants=()):
    """Build a branch with one output."""
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in constants]
    return helper.make_graph(nodes, "branch", [], [result], tensors)


def choose(condition, then, otherwise, result="y", name="choice"):
    return helper.make_node(
        "If", [condition], [result], name, then_branch=then, else_branch=otherwise
    )


def one(op_type, source, result, **attributes):
    return branch([helper.make_node(op_type, [source], [result], **attributes)], result)


@pytest.mark.parametrize(("value", "expected"), [(True, ["nn.relu"]), (False, ["tanh"])])
def test_the_taken_branch_remains(make_model, compare, operators, value, expected):
    node = choose("c", one("Relu", "x", "a"), one("Tanh", "x", "a"))
    graph = compare(make_model([node], IMAGE, constants={"c": np.array(value)}))
    assert operators(graph) == expected


def test_a_condition_computed_from_shapes(make_model, compare, operators):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "i"], ["extent"]),
        helper.make_node("Equal", ["extent", "three"], ["c"]),
        choose("c", one("Relu", "x", "a"), one("Det", "x", "b")),
    ]
    graph = compare(make_model(nodes, IMAGE, constants={"i": np.array(1), "three": np.array(3)}))
    assert operators(graph) == ["nn.relu"]


def test_branches_inside_of_branches(make_model, compare, operators):
    inner = choose("d", one("Det", "a", "b"), one("Sigmoid", "a", "b"), result="o", name="inner")
    outer = branch([helper.make_node("Relu", ["x"], ["a"]), inner], "o")
    nodes = [choose("c", outer, one("Det", "x", "o"))]
    constants = {"c": np.array(True), "d": np.array([False])}
    assert operators(compare(make_model(nodes, IMAGE, constants=constants))) == [
        "nn.relu",
        "sigmoid",
    ]


def test_equal_names_in_two_branches_stay_apart(make_model, compare):
    def scaled(factor, result):
        body = branch([helper.make_node("Mul", ["x", "k"], ["a"], "scale")], "a", [("k", factor)])
        return choose("c", body, one("Identity", "x", "a"), result=result, name=f"if_{result}")

    nodes = [scaled(2.0, "l"), scaled(3.0, "r"), helper.make_node("Add", ["l", "r"], ["y"])]
    graph = compare(make_model(nodes, IMAGE, constants={"c": np.array(True)}))
    assert len(graph.outputs) == 1


def test_a_branch_that_is_an_outer_value_or_a_constant(make_model, compare):
    outer, constant = one("Identity", "r", "o"), branch([], "k", [("k", [1.0])])
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        choose("c", outer, constant, result="same", name="first"),
        choose("d", outer, constant, result="one", name="second"),
        helper.make_node("Add", ["same", "one"], ["y"]),
    ]
    constants = {"c": np.array(True), "d": np.array(False)}
    compare(make_model(nodes, IMAGE, constants=constants))


def test_layers_of_a_branch_have_names_of_their_own(make_model):
    def conv(result):
        body = branch([helper.make_node("Conv", ["x", "w"], ["a"])], "a")
        return choose("c", body, one("Identity", "x", "a"), result=result, name=f"if_{result}")

    nodes = [conv("l"), conv("r"), helper.make_node("Add", ["l", "r"], ["y"])]
    constants = {"c": np.array(True), "w": np.ones((3, 3, 1, 1), np.float32)}
    text = load_onnx(make_model(nodes, IMAGE, constants=constants)).module.script()
    assert text.count("conv2d") == 2


def test_unsupported_nodes_of_the_taken_branch_are_listed(make_model):
    hard = [
        helper.make_node("Det", ["x"], ["a"], name="hard"),
        helper.make_node("MaxPool", ["x"], ["b"], name="pool", kernel_shape=[1, 1, 1]),
        helper.make_node("Sum", ["a", "b"], ["s"]),
    ]
    nodes = [choose("c", branch(hard, "s"), one("Relu", "x", "a"))]
    model = make_model(nodes, IMAGE, constants={"c": np.array(True)})
    with pytest.raises(UnsupportedModelError, match=r"(?s)2 nodes.*hard \(Det\).*pool \(MaxPool"):
        load_onnx(model)


def test_conditions_computed_from_data_name_the_inputs(make_model):
    nodes = [
        helper.make_node("ReduceMax", ["mode"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["c"]),
        choose("c", one("Relu", "x", "a"), one("Tanh", "x", "a")),
    ]
    inputs = {**IMAGE, "mode": ("N", 1)}
    model = make_model(nodes, inputs, constants={"zero": np.float32(0)})
    with pytest.raises(
        UnsupportedModelError,
        match=r"choice \(If\): .* depends on 'mode'; .* store its value .* as an initialiser",
    ):
        load_onnx(model)


def test_a_setting_stored_in_the_file_chooses_the_branch(make_model, operators):
    nodes = [
        helper.make_node("Greater", ["mode", "zero"], ["c"]),
        choose("c", one("Relu", "x", "a"), one("Tanh", "x", "a")),
    ]
    inputs = {**IMAGE, "mode": ()}
    constants = {"zero": np.float32(0), "mode": np.float32(1)}
    model = make_model(nodes, inputs, constants=constants)
    graph = load_onnx(model)
    assert operators(graph) == ["nn.relu"]
    assert [name for name, _, _ in graph.inputs] == ["x"]


def test_damaged_branches(make_model):
    node = choose("c", one("Relu", "x", "a"), one("Tanh", "nothing", "a"))
    constants = {"c": np.array(True)}
    with pytest.raises(ModelError, match="reads 'nothing', which nothing before it defines"):
        load_onnx(make_model([node], IMAGE, constants=constants))
    node = choose("c", one("Relu", "x", "a"), one("Tanh", "x", "a"))
    node.attribute[1].g.ClearField("output")  # attributes are in the order of their names
    with pytest.raises(ModelError, match=r"node 'choice' \(If\): its then_branch is missing"):
        load_onnx(make_model([node], IMAGE, constants=constants))
    del node.attribute[1]
    with pytest.raises(ModelError, match=r"'choice' \(If\) is not valid ONNX: .*'then_branch'"):
        load_onnx(make_model([node], IMAGE, constants=constants))
    del node.input[:]
    with pytest.raises(ModelError, match=r"'choice' \(If\) is not valid ONNX"):
        load_onnx(make_model([node], IMAGE, constants=constants))
