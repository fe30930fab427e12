"""Elements that indices choose are those of ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 6, 4)}

GATHERED = {
    "one": (1, np.int64(-1)),
    "range": (2, np.array([1, 2, 3])),
    "any": (2, np.array([[1, -2], [5, 3]])),
}


@pytest.mark.parametrize("case", GATHERED)
def test_gather(make_model, compare, case):
    axis, indices = GATHERED[case]
    node = helper.make_node("Gather", ["x", "c"], ["y"], axis=axis)
    compare(make_model([node], IMAGE, constants={"c": indices}))


def positions(shape, low, high):
    return np.random.default_rng(0).integers(low, high, shape)


def data_like(shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


# Data of a fixed batch, and indices below their extents or counted from their end.
FIXED = {"x": (2, 3, 6, 4)}
CHOSEN = {
    "elements": ("GatherElements", {"axis": 2}, [positions((2, 3, 5, 4), -6, 6)]),
    "elements of some": ("GatherElements", {"axis": -1}, [positions((2, 2, 5, 7), -4, 4)]),
    "vectors": ("GatherND", {}, [positions((5, 3), 0, 2)]),
    "vectors of a sample": ("GatherND", {"batch_dims": 1}, [positions((2, 5, 2), -3, 3)]),
    "numbers": ("GatherND", {}, [positions((5, 2, 4), -2, 2)]),
    "written": ("ScatterElements", {"axis": 3}, [
        np.tile(np.array([3, -2, 0]), (2, 3, 6, 1)), data_like((2, 3, 6, 3)),
    ]),
    "added": ("ScatterElements", {"axis": 2, "reduction": "add"}, [
        positions((2, 3, 9, 4), -6, 6), data_like((2, 3, 9, 4)),
    ]),
    "greatest": ("ScatterElements", {"axis": 1, "reduction": "max"}, [
        positions((1, 3, 2, 4), 0, 3), data_like((1, 3, 2, 4)),
    ]),
    "rows": ("ScatterND", {}, [np.array([[1, 2], [0, -1]]), data_like((2, 6, 4))]),
    "rows added": ("ScatterND", {"reduction": "add"}, [
        np.array([[1, 2], [1, 2]]), data_like((2, 6, 4)),
    ]),
    "numbers multiplied": ("ScatterND", {"reduction": "mul"}, [
        positions((3, 2, 4), 0, 2), data_like((3, 2)),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOSEN)
def test_chosen_and_replaced_elements(make_model, compare, case):
    kind, attributes, operands = CHOSEN[case]
    constants = dict(zip("cd", operands, strict=False))
    node = helper.make_node(kind, ["x", *constants], ["y"], **attributes)
    compare(make_model([node], FIXED, constants=constants, opset=18))


@pytest.mark.parametrize(
    ("kind", "element"), [("GatherElements", 7), ("GatherElements", 6), ("GatherND", 7)]
)
def test_indices_that_are_data(make_model, compare, kind, element):
    """Rounded, they are -2 to 2, or wrap around where ONNX Runtime would refuse them."""
    depth = {} if kind == "GatherElements" else {"batch_dims": 1}
    nodes = [
        helper.make_node("Clip", ["z", "low", "high"], ["a"]),
        helper.make_node("Cast", ["a"], ["i"], to=element),
        helper.make_node(kind, ["x", "i"], ["y"], **(depth or {"axis": 1})),
    ]
    constants = {"low": np.float32(-2), "high": np.float32(2)}
    inputs = {"x": ("N", 3, 4), "z": ("N", 2, 4 if not depth else 2)}
    compare(make_model(nodes, inputs, constants=constants))


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("GatherElements", (1, 3, 6, 4), "along the batch axis"),
        ("GatherND", (5, 1), "along the batch axis"),
        ("GatherND", (5, 0), "no elements"),
    ],
)
def test_choices_among_samples_are_rejected(make_model, kind, shape, message):
    node = helper.make_node(kind, ["x", "c"], ["y"], name="choice")
    model = make_model([node], IMAGE, constants={"c": np.zeros(shape, np.int64)})
    with pytest.raises(UnsupportedModelError, match=rf"choice \({kind}\): .*{message}"):
        load_onnx(model)


def test_indices_beyond_the_data_are_rejected(make_model):
    node = helper.make_node("GatherElements", ["x", "c"], ["y"], axis=1)
    model = make_model([node], FIXED, constants={"c": np.full((2, 3, 6, 4), 3)})
    with pytest.raises(UnsupportedModelError, match=r"indices are not all below \(3\)"):
        load_onnx(model)
