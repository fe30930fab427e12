"""Activations equal ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 5, 4)}


def activation(make_model, kind, **attributes):
    return make_model([helper.make_node(kind, ["x"], ["y"], **attributes)], IMAGE, opset=20)


CASES = {
    "thresholded": ("ThresholdedRelu", {"alpha": 0.3}, 17, None),
    "shrink": ("Shrink", {"lambd": 0.4, "bias": 0.2}, 17, None),
    "hardmax": ("Hardmax", {"axis": 1}, 17, None),
    "hardmax_last": ("Hardmax", {}, 17, None),
    "hardmax_of_the_rest": ("Hardmax", {"axis": 2}, 11, None),
    "upper": ("Trilu", {}, 17, np.int64(1)),
    "lower": ("Trilu", {"upper": 0}, 17, np.int64(-1)),
    "slopes_by_position": ("PRelu", {}, 17, np.linspace(0, 1, 60, dtype="f").reshape(3, 5, 4)),
    "slopes_by_column": ("PRelu", {}, 17, np.linspace(-1, 1, 4, dtype="f")),
}


@pytest.mark.parametrize("case", CASES)
def test_activations(make_model, compare, case):
    kind, attributes, opset, second = CASES[case]
    names = ["x"] if second is None else ["x", "c"]
    node = helper.make_node(kind, names, ["y"], **attributes)
    constants = {} if second is None else {"c": second}
    compare(make_model([node], IMAGE, constants=constants, opset=opset))


DECOMPOSED = {
    "Celu": {"alpha": 0.3},
    "Elu": {"alpha": 0.3},
    "HardSigmoid": {"alpha": 0.15},
    "HardSwish": {},
    "Mish": {},
    "Selu": {},
    "Softplus": {},
    "Softsign": {},
}


@pytest.mark.parametrize("kind", DECOMPOSED)
def test_decomposed_activations(make_model, compare, operators, kind):
    allowed = {"abs", "add", "clip", "divide", "exp", "log", "multiply", "negative", "nn.relu"}
    allowed |= {"tanh"}
    graph = compare(activation(make_model, kind, **DECOMPOSED[kind]))
    assert set(operators(graph)) <= allowed


def test_attributes_of_activations(make_model, compare):
    compare(activation(make_model, "Gelu", approximate="tanh"))
    compare(activation(make_model, "LeakyRelu", alpha=0.3))


@pytest.mark.parametrize("shape", [(3, 1, 1), (1,)])
def test_prelu(make_model, compare, shape):
    slope = np.linspace(0.1, 0.4, np.prod(shape), dtype=np.float32).reshape(shape)
    node = helper.make_node("PRelu", ["x", "c"], ["y"])
    compare(make_model([node], IMAGE, constants={"c": slope}))


@pytest.mark.parametrize("dtype", ["int64", "bool"])
@pytest.mark.parametrize("upper", [0, 1])
def test_triangles_of_integers(make_model, compare, dtype, upper):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("Trilu", ["x"], ["y"], upper=upper)
    compare(make_model([node], IMAGE, element=element))


REJECTED = {
    "jumps": ("Mod", np.float32(0.7)),
    r"slope has shape \(2, 5, 4\)|do not broadcast": ("PRelu", np.ones((2, 5, 4), "f")),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_rejected_by_name(make_model, reason):
    kind, second = REJECTED[reason]
    node = helper.make_node(kind, ["x", "c"], ["y"], "op")
    with pytest.raises(UnsupportedModelError, match=rf"op \({kind}\): .*({reason})"):
        load_onnx(make_model([node], IMAGE, constants={"c": second}))
