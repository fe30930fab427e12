"""Pools and means of the QOperator format compute as before, with channels first and last."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

MICROSOFT = {"com.microsoft": 1}
SCALES = {
    "xs": np.float32(1 / 16),
    "xz": np.uint8(120),
    "ys": np.float32(1 / 32),
    "yz": np.uint8(60),
}
INPUTS = ["x", "xs", "xz", "ys", "yz"]


def model_of(make_model, op_type, shape, inputs=INPUTS, **attributes):
    node = helper.make_node(
        op_type, inputs, ["y"], name="pool", domain="com.microsoft", **attributes
    )
    return make_model(
        [node], {"x": shape}, constants=SCALES, element=2, opset=21, domains=MICROSOFT
    )


def image(*shape):
    return {"x": np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)}


@pytest.mark.parametrize("channels_last", [0, 1])
@pytest.mark.parametrize("counted", [0, 1])
def test_average_pool(make_model, equal_to_original, channels_last, counted):
    """Padding counts as the number 0, which is the zero point."""
    shape = (2, 7, 6, 3) if channels_last else (2, 3, 7, 6)
    model = model_of(
        make_model, "QLinearAveragePool", shape, kernel_shape=[2, 4], strides=[2, 1],
        pads=[1, 1, 0, 2], channels_last=channels_last, count_include_pad=counted,
    )  # fmt: skip
    result = equal_to_original(model, image(*shape), ties=0.02)
    assert "pool" in [node.name for node in result.graph.node if node.op_type == "AveragePool"]


@pytest.mark.parametrize("channels_last", [0, 1])
def test_global_average_pool(make_model, equal_to_original, channels_last):
    shape = (2, 4, 8, 3) if channels_last else (2, 3, 4, 8)
    model = model_of(make_model, "QLinearGlobalAveragePool", shape, channels_last=channels_last)
    equal_to_original(model, image(*shape))


def test_global_average_pool_of_unknown_layout_is_refused(make_model):
    nodes = [
        helper.make_node("Unknown", ["x"], ["q"], domain="my.ops"),
        helper.make_node(
            "QLinearGlobalAveragePool", ["q", *INPUTS[1:]], ["y"], name="pool",
            domain="com.microsoft", channels_last=1,
        ),
    ]  # fmt: skip
    domains = {**MICROSOFT, "my.ops": 1}
    model = make_model(nodes, {"x": (2, 4, 8, 3)}, constants=SCALES, domains=domains)
    with pytest.raises(UnsupportedModelError, match=r"pool .* has channels_last=1, and how many"):
        load_onnx(model)


def test_max_pool_with_channels_last(make_model, equal_to_original):
    model = model_of(
        make_model, "NhwcMaxPool", (2, 7, 6, 3), ["x"], kernel_shape=[3, 3], strides=[2, 2],
        pads=[1, 1, 1, 1],
    )  # fmt: skip
    equal_to_original(model, image(2, 7, 6, 3))


def test_layers_with_channels_last_one_behind_another(make_model, equal_to_original):
    """How many dimensions a tensor has follows from what computed it."""
    weight = np.random.default_rng(0).integers(-60, 60, (5, 3, 3, 3)).astype(np.int8)
    constants = {**SCALES, "w": weight, "ws": np.float32(1 / 64), "wz": np.int8(0)}
    conv = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    nodes = [
        helper.make_node("QLinearConv", conv, ["c"], domain="com.microsoft", channels_last=1),
        helper.make_node(
            "QLinearGlobalAveragePool", ["c", *INPUTS[1:]], ["y"], domain="com.microsoft",
            channels_last=1,
        ),
    ]  # fmt: skip
    shape = ("N", "H", "W", 3)
    model = make_model(
        nodes, {"x": shape}, constants=constants, element=2, opset=21, domains=MICROSOFT
    )
    equal_to_original(model, image(2, 4, 6, 3))


@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean(make_model, rewritten, run, keepdims):
    """ONNX Runtime knows the operator's form only, so the expectation is written out."""
    model = model_of(make_model, "QLinearReduceMean", (2, 3, 8), axes=[2], keepdims=keepdims)
    data = image(2, 3, 8)
    real = (data["x"] - np.float32(120)) / 16
    mean = real.mean(axis=2, keepdims=bool(keepdims))
    expected = np.clip(np.round(mean * 32) + 60, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(run(rewritten(model), data)[0], expected)
