"""Normalizations by a tensor's own statistics equal ONNX Runtime, or what ONNX defines."""

import numpy as np
import pytest
import torch
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.twin import Twin

IMAGE = {"x": ("N", 6, 5, 4)}
SCALES = np.linspace(0.5, 2, 6).astype(np.float32)
BIASES = np.linspace(-1, 1, 6).astype(np.float32)
PARAMETERS = {"g": SCALES, "b": BIASES}


def test_instance_normalization(make_model, compare, operators):
    node = helper.make_node("InstanceNormalization", ["x", "g", "b"], ["y"], epsilon=0.01)
    graph = compare(make_model([node], IMAGE, constants=PARAMETERS))
    assert operators(graph) == ["nn.group_norm"]
    compare(make_model([node], {"x": ("N", 6, 7)}, constants=PARAMETERS))


def test_group_normalization(make_model, compare):
    node = helper.make_node("GroupNormalization", ["x", "g", "b"], ["y"], num_groups=3)
    compare(make_model([node], IMAGE, constants=PARAMETERS, opset=21))


def test_the_first_group_normalization_has_parameters_per_group(make_model):
    node = helper.make_node("GroupNormalization", ["x", "g", "b"], ["y"], num_groups=2)
    constants = {"g": SCALES[:2], "b": BIASES[:2]}
    graph = load_onnx(make_model([node], IMAGE, constants=constants, opset=18))
    x = torch.randn(2, 6, 5, 4)
    parameters = (torch.from_numpy(np.repeat(v, 3)) for v in constants.values())
    torch.testing.assert_close(
        Twin(graph.module)(x), torch.nn.functional.group_norm(x, 2, *parameters)
    )


@pytest.mark.parametrize("axes", [[2, 3], [1, 2, 3]])
def test_mean_variance_normalization(make_model, axes):
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], axes=axes)
    x = torch.randn(2, 6, 5, 4)
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    found = Twin(load_onnx(make_model([node], IMAGE)).module)(x)
    torch.testing.assert_close(found, (x - mean) / variance.sqrt(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_lp_normalization(make_model, compare, order):
    node = helper.make_node("LpNormalization", ["x"], ["y"], axis=1, p=order)
    compare(make_model([node], IMAGE))


def test_a_vector_of_zeros_has_no_direction(make_model):
    node = helper.make_node("LpNormalization", ["x"], ["y"], axis=1)
    graph = load_onnx(make_model([node], {"x": ("N", 4)}))
    assert not Twin(graph.module)(torch.zeros(1, 4)).any()


def test_root_mean_square_normalization(make_model, compare):
    node = helper.make_node("RMSNormalization", ["x", "g"], ["y"], axis=-1, epsilon=0.01)
    graph = load_onnx(make_model([node], {"x": ("N", 5, 6)}, constants=PARAMETERS, opset=23))
    x = torch.randn(2, 5, 6)
    expected = torch.nn.functional.rms_norm(x, (6,), torch.from_numpy(SCALES), 0.01)
    torch.testing.assert_close(Twin(graph.module)(x), expected)


@pytest.mark.parametrize("attributes", [{"size": 3}, {"size": 5, "alpha": 0.2, "bias": 2.0}])
def test_local_response_normalization(make_model, compare, operators, attributes):
    node = helper.make_node("LRN", ["x"], ["y"], **attributes)
    graph = compare(make_model([node], IMAGE))
    assert operators(graph) == ["multiply", "nn.conv2d", "add", "power", "multiply"]


REJECTED = {
    "mix samples": ("MeanVarianceNormalization", {"axes": [0, 2, 3]}),
    "p=3": ("LpNormalization", {"p": 3}),
    "in 4 groups": ("GroupNormalization", {"num_groups": 4}),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_rejected_by_name(make_model, reason):
    kind, attributes = REJECTED[reason]
    inputs = ["x", "g", "b"] if kind == "GroupNormalization" else ["x"]
    node = helper.make_node(kind, inputs, ["y"], "op", **attributes)
    model = make_model([node], IMAGE, constants=PARAMETERS, opset=21)
    with pytest.raises((UnsupportedModelError, ValueError), match=reason):
        load_onnx(model)
