"""Operators that move values equal ONNX Runtime; shape arithmetic leaves no trace."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 6, 4)}


def node(kind, inputs, outputs=("y",), **attributes):
    return helper.make_node(kind, list(inputs), list(outputs), **attributes)


def integers(*values):
    return np.array(values, np.int64)


ONE_INPUT = {
    "transpose": (node("Transpose", ["x"], perm=[0, 2, 3, 1]), {}, 17),
    "flatten": (node("Flatten", ["x"]), {}, 17),
    "flatten_2": (node("Flatten", ["x"], axis=2), {}, 17),
    "flatten_-1": (node("Flatten", ["x"], axis=-1), {}, 17),
    "reshape": (node("Reshape", ["x", "c"]), {"c": integers(0, -1)}, 17),
    "reshape_rest": (node("Reshape", ["x", "c"]), {"c": integers(-1, 24)}, 17),
    "unsqueeze": (node("Unsqueeze", ["x", "c"]), {"c": integers(-1, 1)}, 13),
    "unsqueeze_11": (node("Unsqueeze", ["x"], axes=[1, 3]), {}, 11),
    "concat": (node("Concat", ["x", "x"], axis=-1), {}, 17),
    "slice_9": (node("Slice", ["x"], starts=[1], ends=[3], axes=[2]), {}, 9),
    "slice_all": (
        node("Slice", ["x", "a", "b", "c"]),
        {"a": integers(0, 1), "b": integers(10**9, 10**9), "c": integers(0, 2)},
        17,
    ),
    "slice": (
        node("Slice", ["x", "a", "b", "c", "d"]),
        {
            "a": integers(1, -3),
            "b": integers(9999999999, -1),
            "c": integers(2, 3),
            "d": integers(2, 1),
        },
        17,
    ),
    "slice_backwards": (
        node("Slice", ["x", "a", "b", "c", "d"]),
        {
            "a": integers(-1, 4, 9),
            "b": integers(-(2**31), 0, -(2**63)),
            "c": integers(1, 2, 3),
            "d": integers(-1, -2, -3),
        },
        17,
    ),
    "expand": (node("Expand", ["x", "c"]), {"c": integers(2, 1, 1, 1, 1)}, 17),
    "tile": (node("Tile", ["x", "c"]), {"c": integers(1, 2, 1, 3)}, 17),
    "pad": (
        node("Pad", ["x", "c", "v"]),
        {"c": integers(0, 1, 2, 0, 0, 0, 1, 3), "v": np.float32(0.5)},
        17,
    ),
    "pad_10": (node("Pad", ["x"], pads=[0, 1, 2, 0, 0, 0, 1, 3], value=0.25), {}, 10),
    "pad_signal_of_channels": (
        node("Pad", ["x", "c", "", "a"], mode="reflect"),
        {"c": integers(2, 1, 1, 2), "a": integers(1, 3)},
        18,
    ),
    "pad_edge": (
        node("Pad", ["x", "c"], mode="edge"),
        {"c": integers(0, 1, -2, 0, 0, 0, 1, 9)},
        17,
    ),
    "pad_wrap": (
        node("Pad", ["x", "c"], mode="wrap"),
        {"c": integers(0, 0, 6, 0, 0, 3, 0, 2)},
        19,
    ),
    "pad_negative": (node("Pad", ["x", "c"]), {"c": integers(0, 0, -2, 1, 0, 0, 1, -3)}, 17),
    "pad_axes": (
        node("Pad", ["x", "c", "", "a"]),
        {"c": integers(1, 2, 3, 4), "a": integers(2, -1)},
        18,
    ),
}


@pytest.mark.parametrize("case", ONE_INPUT)
def test_one_input(make_model, compare, case):
    operator, constants, opset = ONE_INPUT[case]
    compare(make_model([operator], IMAGE, constants=constants, opset=opset))


@pytest.mark.parametrize("opset", [11, 17])
def test_squeeze(make_model, compare, opset):
    constants = {"c": integers(2, -1)} if opset == 17 else {}
    squeeze = node("Squeeze", ["x", "c"]) if constants else node("Squeeze", ["x"], axes=[2, 3])
    compare(make_model([squeeze], {"x": ("N", 3, 1, 1)}, constants=constants, opset=opset))


SPLITS = {
    "sizes_11": (node("Split", ["x"], ["a", "b"], axis=2, split=[2, 4]), {}, 11),
    "equal_13": (node("Split", ["x"], ["a", "b"], axis=2), {}, 13),
    "sizes_13": (node("Split", ["x", "c"], ["a", "b"], axis=2), {"c": integers(1, 5)}, 13),
    "parts_18": (node("Split", ["x"], ["a", "b"], axis=2, num_outputs=2), {}, 18),
}


@pytest.mark.parametrize("case", SPLITS)
def test_split(make_model, compare, case):
    split, constants, opset = SPLITS[case]
    joined = node("Concat", ["b", "a"], axis=2)
    compare(make_model([split, joined], IMAGE, constants=constants, opset=opset))


def test_several_outputs(make_model, compare):
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"])]
    graph = compare(make_model(nodes, IMAGE, outputs=["b", "a"]))
    assert graph.output_names == ("b", "a")


def test_flatten_by_shape_arithmetic(make_model, compare, operators):
    """View(x.size(0), -1), as exporters write it."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["t"], axis=0),
        node("Reshape", ["x", "t"]),
    ]
    constants = {"zero": np.int64(0), "axes": integers(0), "rest": integers(-1)}
    assert operators(compare(make_model(nodes, IMAGE, constants=constants))) == ["reshape"]


def test_expand_by_shape_arithmetic(make_model, compare, operators):
    """Expand(x.shape) with its Where against -1, as exporters write it."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Shape", ["s"], ["rank"]),
        node("ConstantOfShape", ["rank"], ["ones"], value=helper.make_tensor("v", 7, [1], [1])),
        node("Mul", ["ones", "minus"], ["minuses"]),
        node("Equal", ["s", "minuses"], ["open"]),
        node("Where", ["open", "ones", "s"], ["target"]),
        node("Expand", ["z", "target"], ["e"]),
        node("Add", ["x", "e"]),
    ]
    inputs = {**IMAGE, "z": ("N", 3, 1, 1)}
    model = make_model(nodes, inputs, constants={"minus": np.int64(-1)})
    assert operators(compare(model)) == ["broadcast_to", "add"]


def test_zeros_of_the_shape_of_a_tensor(make_model, compare, operators):
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("ConstantOfShape", ["s"], ["zeros"]),
        node("Concat", ["x", "zeros"], axis=1),
    ]
    assert operators(compare(make_model(nodes, IMAGE))) == ["full", "concat"]


REJECTED = {
    "batch axis": (node("Slice", ["x", "a", "b"], name="op"), {"a": integers(1), "b": integers(2)}),
    "at most 3": (
        node("Pad", ["x", "c"], name="op", mode="reflect"),
        {"c": integers(0, 0, 1, 1, 0, 0, 1, 4)},
    ),
    "mode='mirror'": (
        node("Pad", ["x", "c"], name="op", mode="mirror"),
        {"c": integers(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "reshapes": (node("Reshape", ["x", "c"], name="op"), {"c": integers(0, 5)}),
    "joins": (node("Concat", ["x", "c"], name="op", axis=1), {"c": np.ones((1, 3, 1, 1), "f")}),
    "empty": (node("Slice", ["x", "a", "b", "c"], name="op"), dict.fromkeys("abc", integers(2))),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_rejected_by_name(make_model, reason):
    operator, constants = REJECTED[reason]
    with pytest.raises(UnsupportedModelError, match=rf"op \({operator.op_type}\): .*{reason}"):
        load_onnx(make_model([operator], IMAGE, constants=constants))


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1])
def test_a_slice_to_the_end_of_the_batch_is_none(make_model, end):
    node = helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])
    ints = {"starts": [0, 1], "ends": [end, end], "axes": [0, 1]}
    values = {name: np.array(v, np.int64) for name, v in ints.items()}
    graph = load_onnx(make_model([node], {"x": ("N", 3, 4)}, constants=values))
    assert graph.outputs[0][1] == (None, 2, 4)


def test_parts_without_elements_are_left_out(make_model, compare, operators):
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b", "c"], axis=2),
        node("Neg", ["a"], ["d"]),
        node("Concat", ["b", "d", "c"], ["y"], axis=2),
    ]
    model = make_model(nodes, IMAGE, constants={"sizes": integers(2, 0, 4)})
    assert operators(compare(model)) == ["strided_slice", "strided_slice", "negative", "concat"]


@pytest.mark.parametrize("reader", ["Neg", "Identity"])
def test_a_part_without_elements_is_not_read(make_model, reader):
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b"], axis=2),
        node(reader, ["a"], ["y"]),
    ]
    model = make_model(nodes, IMAGE, constants={"sizes": integers(0, 6)})
    with pytest.raises(UnsupportedModelError, match=r"shape \(N, 3, 0, 4\)"):
        load_onnx(model)
