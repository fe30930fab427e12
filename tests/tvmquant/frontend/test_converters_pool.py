"""Pooling and reductions equal ONNX Runtime."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.twin import Twin

WINDOWS = {
    "plain": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "overlapping": {"kernel_shape": [3, 3]},
    "padded": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "ceil": {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    "ceil_uneven": {
        "kernel_shape": [3, 2],
        "strides": [2, 3],
        "pads": [1, 0, 1, 1],
        "ceil_mode": 1,
    },
    "ceil_window_in_padding": {
        "kernel_shape": [2, 2],
        "strides": [3, 3],
        "pads": [1, 1, 1, 1],
        "ceil_mode": 1,
    },
    "same_upper": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "same_lower": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
}


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pooling(make_model, compare, operators, kind, case):
    node = helper.make_node(kind, ["x"], ["y"], **WINDOWS[case])
    graph = compare(make_model([node], {"x": ("N", 3, 9, 8)}, opset=19))
    assert operators(graph) == ["nn.max_pool2d" if kind == "MaxPool" else "nn.avg_pool2d"]


def test_dilated_max_pool(make_model, compare):
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 3])
    compare(make_model([node], {"x": ("N", 3, 9, 8)}))


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3], strides=[2], pads=[1, 0]),
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3], ceil_mode=1, strides=[2]),
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[9]),
        helper.make_node("GlobalAveragePool", ["x"], ["y"]),
        helper.make_node("GlobalMaxPool", ["x"], ["y"]),
    ],
    ids=lambda node: node.op_type,
)
def test_pools_of_signals(make_model, compare, operators, node):
    graph = compare(make_model([node], {"x": ("N", 3, 9)}))
    found = operators(graph)
    assert (found[0], found[-1]) == ("reshape", "reshape")


@pytest.mark.parametrize("case", ["plain", "padded", "same_upper"])
def test_average_pool_that_counts_padding(make_model, compare, case):
    node = helper.make_node("AveragePool", ["x"], ["y"], count_include_pad=1, **WINDOWS[case])
    compare(make_model([node], {"x": ("N", 3, 9, 8)}))


def test_what_hangs_over_the_padding_is_not_counted(make_model, compare):
    attributes = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 1, 0, 0]}
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], ceil_mode=1, count_include_pad=1, **attributes
    )
    compare(make_model([node], {"x": ("N", 3, 8, 8)}, opset=19))


@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_dilated_average_pool(make_model, compare, count_include_pad):
    attributes = {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [0, 1, 0, 1]}
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], count_include_pad=count_include_pad, **attributes
    )
    model = make_model([node], {"x": ("N", 3, 9, 8)}, opset=19)
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32)
    taps = torch.ones((3, 1, 3, 2))
    arguments = {"padding": (0, 1), "dilation": (2, 3), "groups": 3}
    total = torch.nn.functional.conv2d(torch.from_numpy(x), taps, **arguments)
    inside = torch.nn.functional.conv2d(torch.ones((1, 3, 9, 8)), taps, **arguments)
    found = Twin(load_onnx(model).module)(torch.from_numpy(x))
    torch.testing.assert_close(found, total / (6 if count_include_pad else inside))


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2]},
        {"kernel_shape": [2, 3], "p": 3, "strides": [2, 1], "pads": [1, 1, 0, 0]},
        {"kernel_shape": [2, 3], "p": 1, "auto_pad": "SAME_UPPER"},
    ],
)
def test_pools_of_powers(make_model, compare, attributes):
    node = helper.make_node("LpPool", ["x"], ["y"], **attributes)
    compare(make_model([node], {"x": ("N", 3, 7, 8)}))


def test_global_pool_of_powers(make_model, compare):
    compare(make_model([helper.make_node("GlobalLpPool", ["x"], ["y"])], {"x": ("N", 3, 7, 8)}))


REJECTED = {
    "not smaller": ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 2, 0]}),
    "1-D": ("MaxPool", {"kernel_shape": [2]}),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_rejected_windows(make_model, reason):
    kind, attributes = REJECTED[reason]
    node = helper.make_node(kind, ["x"], ["y"], name="pool", **attributes)
    model = make_model([node], {"x": ("N", 3, 8, 8)}, opset=19)
    with pytest.raises(UnsupportedModelError, match=rf"pool \({kind}\): .*{reason}"):
        load_onnx(model)


def test_indices_that_nothing_reads_do_not_matter(make_model, compare):
    node = helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])
    compare(make_model([node], {"x": ("N", 3, 8, 8)}))


def test_max_pool_with_indices_is_rejected(make_model):
    node = helper.make_node("MaxPool", ["x"], ["y", "i"], name="pool", kernel_shape=[2, 2])
    with pytest.raises(UnsupportedModelError, match=r"pool \(MaxPool\): .*indices"):
        load_onnx(make_model([node], {"x": ("N", 3, 8, 8)}, outputs=("y", "i")))


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("GlobalAveragePool", ["x"], ["y"]),
        helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1, -2]),
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[9, 8]),
    ],
    ids=lambda node: node.op_type,
)
def test_every_global_average_is_the_same_mean(make_model, compare, node):
    graph = compare(make_model([node], {"x": ("N", 3, 9, 8)}))
    call = graph.main.body.blocks[0].bindings[0].value
    assert call.op.name == "relax.mean"
    assert [int(axis) for axis in call.attrs.axis] == [2, 3]
    assert call.attrs.keepdims


def test_global_max_pool(make_model, compare):
    node = helper.make_node("GlobalMaxPool", ["x"], ["y"])
    compare(make_model([node], {"x": ("N", 3, 9, 8)}))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(
    "kind", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"]
)
def test_reductions(make_model, compare, kind, keepdims):
    node = helper.make_node(kind, ["x", "axes"], ["y"], keepdims=keepdims)
    axes = np.array([-1, 1], np.int64)
    compare(make_model([node], {"x": ("N", 3, 9, 8)}, constants={"axes": axes}, opset=18))


def test_reduction_over_the_symbolic_batch(make_model, compare):
    node = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)
    compare(make_model([node], {"x": ("N", 3, 4)}))


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
def test_arg_max(make_model, compare, kind):
    node = helper.make_node(kind, ["x"], ["y"], axis=1)
    compare(make_model([node], {"x": ("N", 5, 4)}, output_element=TensorProto.INT64))


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
def test_the_last_of_equals(make_model, compare, kind):
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node(kind, ["s"], ["y"], axis=-2, keepdims=0, select_last_index=1),
    ]
    compare(make_model(nodes, {"x": ("N", 9, 4)}, output_element=TensorProto.INT64))
