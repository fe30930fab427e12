"""The support check lists every node that cannot be imported, at once."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import (
    load_onnx,
    onnx_import,  # noqa: F401 (it registers the converters)
)
from tvmquant.frontend.operators import CHECKS, OPERATORS
from tvmquant.frontend.registry import CONVERTERS

IMAGE = {"x": ("N", 3, 6, 4)}


def test_every_unsupported_node_is_listed_at_once(make_model):
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], name="foo", domain="my.ops"),
        helper.make_node("NoSuchOperator", ["a"], ["b"], name="new"),
        helper.make_node("Det", ["b"], ["c"], name="hard"),
        helper.make_node("MaxPool", ["c"], ["d", "i"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Relu", ["d"], ["y"], name="relu"),
    ]
    with pytest.raises(UnsupportedModelError) as caught:
        load_onnx(make_model(nodes, IMAGE, domains={"my.ops": 1}, outputs=("y", "i")))
    lines = str(caught.value).splitlines()
    assert "4 nodes" in lines[0]
    assert lines[1].startswith("  foo (my.ops.Foo): operators of domain 'my.ops'")
    assert lines[2].startswith("  new (NoSuchOperator): there is no such operator")
    assert lines[3].startswith("  hard (Det): the operator is not supported")
    assert lines[4].startswith("  pool (MaxPool): its output of indices is used")


def test_nodes_unsupported_because_of_shapes_are_listed_at_once(make_model):
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="between"),
        helper.make_node("Reshape", ["x", "shape"], ["c"], name="second"),
        helper.make_node("Add", ["b", "c"], ["y"], name="sum"),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "shape": np.array([0, 5])}
    with pytest.raises(UnsupportedModelError) as caught:
        load_onnx(make_model(nodes, IMAGE, constants=constants))
    names = [line.split()[0] for line in str(caught.value).splitlines()[1:]]
    assert names == ["first", "second"]


def test_operators_and_attributes_are_judged_in_one_error_in_the_order_of_the_model(make_model):
    """What reads the result of such a node is judged as well, by all that its shapes do not say."""
    nodes = [
        helper.make_node("Conv", ["x", "volume"], ["a"], name="volumes"),
        helper.make_node("Det", ["a"], ["b"], name="hard"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="holes", dilations=[1, 0]),
        helper.make_node("Relu", ["c"], ["d"], name="fine"),
        helper.make_node("Pad", ["d", "pads"], ["e"], name="mirror", mode="mirror"),
        helper.make_node("AveragePool", ["e"], ["f"], name="pool", kernel_shape=[2, 2, 2]),
        helper.make_node("Resize", ["f", "", "scales"], ["g"], name="resize", mode="area"),
        helper.make_node("LpNormalization", ["g"], ["h"], name="norm", p=2),
        helper.make_node("ConvTranspose", ["h", "w"], ["y"], name="steps", strides=[2, 2, 2]),
    ]
    constants = {
        "volume": np.ones((3, 3, 1, 1, 1), np.float32),
        "w": np.ones((3, 3, 1, 1), np.float32),
        "pads": np.zeros(8, np.int64),
        "scales": np.ones(4, np.float32),
    }
    with pytest.raises(UnsupportedModelError, match="7 nodes") as caught:
        load_onnx(make_model(nodes, IMAGE, constants=constants))
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert [line.split()[0] for line in lines] == [
        "volumes", "hard", "holes", "mirror", "pool", "resize", "steps",
    ]  # fmt: skip
    assert lines[0] == (
        "volumes (Conv): its window is 3-D, only windows over one or two axes are supported"
    )
    assert "dilations=[1, 0], expected 2 numbers from 1 to" in lines[2]
    assert "mode='mirror', expected one of constant, reflect" in lines[3]


def test_nodes_that_are_not_valid_do_not_hide_unsupported_ones(make_model):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu", slope=2),
        helper.make_node("Det", ["a"], ["y"], name="hard"),
    ]
    with pytest.raises(UnsupportedModelError, match=r"hard \(Det\)"):
        load_onnx(make_model(nodes, IMAGE))


def test_every_operator_has_a_converter():
    assert set(CONVERTERS) == OPERATORS
    assert CHECKS.keys() <= OPERATORS


def test_an_operator_counts_for_more_than_an_open_shape(make_model):
    node = helper.make_node("Det", ["x"], ["y"], name="hard")
    with pytest.raises(UnsupportedModelError, match=r"hard \(Det\)"):
        load_onnx(make_model([node], {"x": ("N", 3, "height", "width")}))


def test_control_flow_is_rejected_by_name(make_model):
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["inner"])], "g", [], [value])
    node = helper.make_node("Loop", ["", "c", "x"], ["y"], name="flow", body=body)
    model = make_model([node], IMAGE, constants={"c": np.array(True)})
    with pytest.raises(UnsupportedModelError, match=r"flow \(Loop\): .*without control flow"):
        load_onnx(model)


def test_unused_nodes_do_not_matter(make_model):
    nodes = [
        helper.make_node("Det", ["x"], ["unused"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    load_onnx(make_model(nodes, IMAGE))


@pytest.mark.parametrize(
    ("operator", "attributes", "constant", "message"),
    [
        ("DepthToSpace", {"blocksize": 2}, None, "blocksize=2 does not divide 3 channels"),
        ("DepthToSpace", {"blocksize": 2**31 - 1}, None, "does not divide 3 channels"),
        ("SpaceToDepth", {"blocksize": 4}, None, "blocksize=4 does not divide 6 x 4"),
        ("SpaceToDepth", {"blocksize": 0}, None, "blocksize=0"),
        ("Transpose", {"perm": [0, 1, 1, 2]}, None, "is no order of the axes of a 4-D tensor"),
        ("LRN", {"size": 0}, None, "size=0, expected at least 1"),
        ("MaxPool", {"kernel_shape": [0, 2]}, None, "kernel_shape=[0, 2], expected 2 numbers"),
        ("Reshape", {}, np.array([0, -1, -1]), "leaves two dimensions open"),
        ("Reshape", {}, np.array([0, -2, 36]), "dimensions are not negative"),
        ("Resize", {}, np.array([1, 1, np.inf, 2], np.float32), "expected positive numbers"),
        ("Resize", {}, np.array([1, 1, np.nan, 2], np.float32), "expected positive numbers"),
        ("Resize", {}, np.array([1, 1, -2, 2], np.float32), "expected positive numbers"),
    ],
)
def test_impossible_numbers_are_refused_in_words(
    make_model, operator, attributes, constant, message
):
    inputs = ["x"] if constant is None else ["x", *[""] * (operator == "Resize"), "c"]
    constants = {} if constant is None else {"c": constant}
    model = make_model(
        [helper.make_node(operator, inputs, ["y"], name="odd", **attributes)],
        IMAGE,
        constants=constants,
    )
    with pytest.raises(UnsupportedModelError, match=r"odd \(" + operator) as caught:
        load_onnx(model)
    assert message in str(caught.value)
