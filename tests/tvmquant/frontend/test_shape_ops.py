"""Shape arithmetic with a symbolic batch."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.frontend.dimensions import Batch, UnsupportedNodeError, as_array
from tvmquant.frontend.node import Node
from tvmquant.frontend.shape_ops import SHAPE_OPERATORS, evaluate

N = Batch()
SHAPE = as_array([N, 3, 8])


def run(kind, *inputs, opset=17, **attributes):
    proto = helper.make_node(kind, [f"i{i}" for i in range(len(inputs))], ["y"], **attributes)
    return evaluate(Node(proto, "node", opset), list(inputs))


def ints(*values):
    return np.array(values, np.int64)


CASES = {
    "gather": (lambda: run("Gather", SHAPE, np.int64(0)), N),
    "gather_number": (lambda: run("Gather", SHAPE, ints(2, 1)), [8, 3]),
    "concat": (lambda: run("Concat", as_array([N]), ints(-1), axis=0), [N, -1]),
    "slice": (lambda: run("Slice", SHAPE, ints(1), ints(2**60)), [3, 8]),
    "slice_back": (lambda: run("Slice", SHAPE, ints(-1), ints(-9), ints(0), ints(-1)), [8, 3, N]),
    "slice_9": (lambda: run("Slice", SHAPE, starts=[0], ends=[1], opset=9), [N]),
    "unsqueeze": (lambda: run("Unsqueeze", np.array(N, object), ints(0)), [N]),
    "squeeze": (lambda: run("Squeeze", as_array([N]), axes=[0], opset=11), N),
    "mul": (lambda: run("Mul", SHAPE, ints(2, 2, 2)), [Batch(2), 6, 16]),
    "div": (lambda: run("Div", as_array([Batch(6), 7]), ints(2)), [Batch(3), 3]),
    "true_div": (lambda: run("Div", as_array([N, 7]), np.array([1.0], "f")), [N, 7.0]),
    "add": (lambda: run("Add", SHAPE, ints(0, 1, 2)), [N, 4, 10]),
    "sub": (lambda: run("Sub", SHAPE, ints(0, 1, 2)), [N, 2, 6]),
    "cast": (lambda: run("Cast", SHAPE, to=1), [N, 3.0, 8.0]),
    "floor": (lambda: run("Floor", np.array([N, 2.7], object)), [N, 2.0]),
    "ceil": (lambda: run("Ceil", np.array([N, 2.2], object)), [N, 3.0]),
    "equal": (lambda: run("Equal", SHAPE, ints(-1, 3, 4)), [False, True, False]),
    "where": (
        lambda: run("Where", np.array([True, False, False]), SHAPE, ints(1, 2, 4)),
        [N, 2, 4],
    ),
    "product": (lambda: run("ReduceProd", SHAPE), [Batch(24)]),
    "reshape": (lambda: run("Reshape", as_array([N]), ints(-1)), [N]),
    "shape": (lambda: run("Shape", SHAPE), [3]),
    "identity": (lambda: run("Identity", SHAPE), [N, 3, 8]),
}


@pytest.mark.parametrize("case", CASES)
def test_values(case):
    compute, expected = CASES[case]
    assert compute().tolist() == expected


def test_all_operators_are_tested():
    tested = {name.replace("_", "") for name in CASES} | {"reduceprod"}
    assert {operator.lower() for operator in SHAPE_OPERATORS} <= tested


def test_results_without_batch_are_plain_numbers():
    assert run("Gather", SHAPE, np.int64(1)).dtype == np.int64
    assert run("Equal", SHAPE, ints(-1, 3, 4)).dtype == bool


@pytest.mark.parametrize(
    "compute",
    [
        lambda: run("Add", SHAPE, ints(1, 1, 1)),
        lambda: run("Equal", SHAPE, ints(1, 3, 8)),
        lambda: run("Range", SHAPE),
        lambda: run("Slice", SHAPE.reshape(1, 3), ints(0), ints(1)),
    ],
)
def test_unknown_results_are_rejected(compute):
    with pytest.raises(UnsupportedNodeError):
        compute()
