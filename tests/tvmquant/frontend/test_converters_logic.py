"""Comparisons and choices equal ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

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


def test_branches_of_other_types_are_rejected(make_model):
    nodes = [node("Greater", "xc", "m"), node("Where", "mxi", "y")]
    model = make_model(nodes, IMAGE, constants={"c": np.float32(0), "i": np.int64(1)})
    with pytest.raises(UnsupportedModelError, match="Where"):
        load_onnx(model)
