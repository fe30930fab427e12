"""Convolutions, dense layers and normalizations equal ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx


def values(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


CONVOLUTIONS = {
    "plain": ((4, 3, 3, 3), {}),
    "uneven": ((4, 3, 3, 3), {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}),
    "depthwise": ((6, 1, 3, 2), {"group": 3, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same_lower": ((6, 3, 4, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "valid": ((6, 3, 4, 2), {"auto_pad": "VALID", "strides": [2, 3]}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv(make_model, compare, operators, case, bias):
    shape, attributes = CONVOLUTIONS[case]
    names = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("Conv", names, ["y"], **attributes)
    constants = {"w": values(*shape), "b": values(shape[0])}
    graph = compare(make_model([node], {"x": ("N", 3, 9, 8)}, constants=constants))
    assert operators(graph) == (["nn.conv2d", "add"] if bias else ["nn.conv2d"])


SIGNALS = {
    "conv": ("Conv", (6, 2, 3), {"group": 2, "strides": [2], "pads": [1, 0], "dilations": [2]}),
    "conv_same": ("Conv", (5, 4, 4), {"auto_pad": "SAME_LOWER", "strides": [3]}),
    "transposed": (
        "ConvTranspose",
        (4, 5, 3),
        {"strides": [3], "pads": [0, 1], "output_padding": [1]},
    ),
    "transposed_same": ("ConvTranspose", (4, 5, 3), {"strides": [2], "auto_pad": "SAME_UPPER"}),
    "transposed_output": ("ConvTranspose", (4, 5, 4), {"strides": [2], "output_shape": [21]}),
}


@pytest.mark.parametrize("case", SIGNALS)
def test_convolutions_of_signals_are_those_of_images_of_height_1(
    make_model, compare, operators, case
):
    kind, shape, attributes = SIGNALS[case]
    node = helper.make_node(kind, ["x", "w", "b"], ["y"], **attributes)
    outputs = shape[0] if kind == "Conv" else shape[1]
    constants = {"w": values(*shape), "b": values(outputs)}
    graph = compare(make_model([node], {"x": ("N", 4, 11)}, constants=constants))
    name = "nn.conv2d" if kind == "Conv" else "nn.conv2d_transpose"
    assert operators(graph) == ["reshape", name, "add", "reshape"]


TRANSPOSED = {
    "plain": ((4, 3, 3, 3), {}),
    "output_padding": (
        (4, 3, 3, 3),
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]},
    ),
    "grouped": ((4, 3, 4, 4), {"strides": [2, 2], "group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((4, 1, 4, 4), {"strides": [2, 2], "group": 4, "pads": [1, 1, 1, 1]}),
    "dilated": ((4, 3, 3, 3), {"strides": [2, 2], "dilations": [2, 1]}),
    "same_upper": ((4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same_lower": ((4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "smaller_output": ((4, 3, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
    "larger_output": ((4, 3, 3, 3), {"strides": [3, 3], "output_shape": [17, 18]}),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose(make_model, compare, operators, case):
    shape, attributes = TRANSPOSED[case]
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)
    constants = {"w": values(*shape), "b": values(shape[1] * attributes.get("group", 1))}
    graph = compare(make_model([node], {"x": ("N", 4, 5, 6)}, constants=constants))
    assert operators(graph) == ["nn.conv2d_transpose", "add"]


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (4, 3, 3)])
def test_conv_of_other_shapes_is_rejected(make_model, shape):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="stem")
    model = make_model([node], {"x": ("N", 3, 9, 8)}, constants={"w": values(*shape)})
    with pytest.raises(UnsupportedModelError, match=r"stem \(Conv\)"):
        load_onnx(model)


GEMMS = {
    "plain": ((5, 4), (4,), {}),
    "transposed": ((4, 5), (4,), {"transB": 1}),
    "scaled": ((4, 5), (1, 4), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "scalar_bias": ((5, 4), (1,), {}),
}


@pytest.mark.parametrize("case", GEMMS)
def test_gemm_becomes_matmul_and_a_bias_vector(make_model, compare, operators, case):
    weight, bias, attributes = GEMMS[case]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)
    constants = {"w": values(*weight), "b": values(*bias)}
    graph = compare(make_model([node], {"x": ("N", 5)}, constants=constants))
    assert operators(graph) == ["matmul", "add"]
    calls = [binding.value for binding in graph.main.body.blocks[0].bindings]
    assert calls[0].args[1].value.numpy().shape == (5, 4)
    assert calls[1].args[1].value.numpy().shape == (4,)


def test_gemm_without_bias_and_with_transposed_input(make_model, compare):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)
    compare(make_model([node], {"x": (2, 5)}, constants={"w": values(2, 4)}))


def test_gemm_of_two_inputs(make_model, compare):
    node = helper.make_node("Gemm", ["x", "z", "b"], ["y"], transB=1, alpha=0.5, beta=3.0)
    compare(make_model([node], {"x": (3, 5), "z": (7, 5), "b": (7,)}))


def test_matmul(make_model, compare):
    constant = helper.make_node("MatMul", ["x", "w"], ["a"])
    product = helper.make_node("MatMul", ["a", "z"], ["y"])
    inputs = {"x": ("N", 3, 5), "z": ("N", 4, 2)}
    compare(make_model([constant, product], inputs, constants={"w": values(5, 4)}))


def test_batch_normalization(make_model, compare, operators):
    node = helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], epsilon=1e-3)
    constants = {name: values(3) for name in "gbm"} | {"v": np.abs(values(3))}
    graph = compare(make_model([node], {"x": ("N", 3, 4, 5)}, constants=constants))
    assert operators(graph) == ["nn.batch_norm"]


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes"),
    [(17, "ypq", {"training_mode": 1}), (13, "ypqrs", {}), (9, "ypqrs", {})],
)
def test_batch_normalization_in_training_mode_is_rejected(make_model, opset, outputs, attributes):
    """Before opset 14, what names the statistics as outputs trains, even if nothing reads them."""
    node = helper.make_node(
        "BatchNormalization", ["x", "g", "b", "m", "v"], list(outputs), name="bn", **attributes
    )
    constants = {name: np.ones(3, np.float32) for name in "gbmv"}
    model = make_model([node], {"x": ("N", 3, 4, 5)}, constants=constants, opset=opset)
    with pytest.raises(UnsupportedModelError, match=r"bn .*training mode.*model\.eval"):
        load_onnx(model)


@pytest.mark.parametrize("axis", [-1, 2])
def test_layer_normalization(make_model, compare, axis):
    node = helper.make_node("LayerNormalization", ["x", "g"], ["y"], axis=axis)
    scale = values(8) if axis == -1 else values(9, 8)
    compare(make_model([node], {"x": ("N", 3, 9, 8)}, constants={"g": scale}))


def test_layer_normalization_returns_its_statistics(make_model, compare):
    node = helper.make_node("LayerNormalization", ["x", "g"], ["y", "mean", "deviation"], axis=2)
    outputs = ("y", "mean", "deviation")
    model = make_model([node], {"x": ("N", 3, 9, 8)}, outputs, constants={"g": values(9, 8)})
    compare(model)
