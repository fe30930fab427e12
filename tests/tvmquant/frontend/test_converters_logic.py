"""Comparisons and choices equal ONNX Runtime."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 5, 4)}


def node(kind, inputs, output):
    return helper.make_node(kind, list(inputs), [output])


@pytest.mark.parametrize(
    "kind", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor", "Not"]
)
def test_choices_by_comparison(make_model, compare, kind):
    """Round, so that some elements are equal."""
    nodes = [node("Round", "x", "r")]
    if kind in ("And", "Or", "Xor", "Not"):
        nodes += [node("Greater", "rc", "a"), node("Less", "rd", "b")]
        nodes.append(node(kind, "a" if kind == "Not" else "ab", "m"))
    else:
        nodes.append(node(kind, "rc", "m"))
    nodes.append(node("Where", "mxd", "y"))
    constants = {"c": np.zeros((), np.float32), "d": np.array([[1.0], [0], [2], [1], [3]], "f")}
    compare(make_model(nodes, IMAGE, constants=constants))


def test_a_constant_mask_may_select_infinities(make_model, compare):
    mask = np.triu(np.ones((5, 4), bool), 1)
    nodes = [node("Where", "mcx", "a"), helper.make_node("Softmax", ["a"], ["y"], axis=-2)]
    compare(make_model(nodes, IMAGE, constants={"m": mask, "c": np.float32(-np.inf)}))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("shape", [(), (5, 1)])
def test_a_choice_that_is_known_is_one_of_its_branches(
    make_model, compare, operators, known, shape
):
    nodes = [node("Where", "mxc", "a"), node("Neg", "a", "y")]
    constants = {"m": np.full(shape, known), "c": np.arange(4, dtype=np.float32)}
    found = operators(compare(make_model(nodes, IMAGE, constants=constants)))
    assert found == ([] if known else ["broadcast_to"]) + ["negative"]


@pytest.mark.parametrize("signs", [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_infinities_and_nan_are_found(make_model, compare, signs):
    """Quotients by rounded numbers are infinite, those of zeros NaN."""
    detect = dict(zip(("detect_positive", "detect_negative"), signs, strict=True))
    nodes = [
        node("Round", "x", "r"),
        node("Div", "rr", "q"),
        node("Div", "xr", "p"),
        node("IsNaN", "q", "a"),
        helper.make_node("IsInf", ["p"], ["b"], **detect),
        node("Or", "ab", "y"),
    ]
    compare(make_model(nodes, IMAGE, opset=20, output_element=TensorProto.BOOL))


def test_branches_of_other_types_are_rejected(make_model):
    nodes = [node("Greater", "xc", "m"), node("Where", "mxi", "y")]
    model = make_model(nodes, IMAGE, constants={"c": np.float32(0), "i": np.int64(1)})
    with pytest.raises(UnsupportedModelError, match="Where"):
        load_onnx(model)


TOKENS = {"x": ("N", 6)}
INT64 = {"element": TensorProto.INT64, "output_element": TensorProto.FLOAT}


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("values", [[0.0, 1.0], [-1.0, 3.0]])
def test_one_hot(make_model, compare, axis, values):
    """Indices are -4 to 4, of which the outermost are none of three classes."""
    nodes = [helper.make_node("OneHot", ["x", "d", "v"], ["y"], axis=axis)]
    constants = {"d": np.int64(3), "v": np.array(values, np.float32)}
    compare(make_model(nodes, TOKENS, constants=constants, **INT64))


def test_rows_of_a_table(make_model, compare):
    """Negative indices count from the end."""
    table = np.random.default_rng(0).standard_normal((9, 2, 3)).astype(np.float32)
    nodes = [node("Gather", "tx", "y")]
    compare(make_model(nodes, TOKENS, constants={"t": table}, **INT64))


def test_arithmetic_of_indices(make_model, compare):
    nodes = [
        node("Add", "xa", "b"),
        node("Mul", "bx", "c"),
        node("Max", "cx", "d"),
        node("Sub", "da", "e"),
        helper.make_node("Cast", ["e"], ["y"], to=TensorProto.FLOAT),
    ]
    compare(make_model(nodes, TOKENS, constants={"a": np.int64(3)}, **INT64))


def test_bytes_that_would_wrap_around_are_not_added(make_model):
    nodes = [node("Add", "xx", "a"), helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT)]
    types = {"element": TensorProto.UINT8, "output_element": TensorProto.FLOAT}
    with pytest.raises(UnsupportedModelError, match=r"\(Add\): its operands have types uint8"):
        load_onnx(make_model(nodes, TOKENS, **types))
