"""Ends of outputs, and which networks count as piecewise linear."""

import numpy as np
import pytest
from tvm import relax

from tests.tvmquant.twin.graphs import graph
from tvmquant.sensitivity.structure import SIGMOID, SOFTMAX, ends_of, is_piecewise_linear

WEIGHT = relax.const(np.ones((6, 4), np.float32))


def dense(x):
    return relax.op.matmul(x, WEIGHT)


ENDS = {
    "dense": (lambda b, x: dense(x), ["relax.matmul"]),
    "softmax": (lambda b, x: relax.op.nn.softmax(b.emit(dense(x)), 1), [SOFTMAX]),
    "softmax of the last axis": (lambda b, x: relax.op.nn.softmax(b.emit(dense(x))), [SOFTMAX]),
    "softmax of items": (lambda b, x: relax.op.nn.softmax(b.emit(dense(x)), 0), [""]),
    "reshaped": (
        lambda b, x: relax.op.reshape(b.emit(relax.op.sigmoid(b.emit(dense(x)))), (8,)),
        [SIGMOID],
    ),
    "two": (
        lambda b, x: [relax.op.sigmoid(b.emit(dense(x))), relax.op.nn.softmax(b.emit(dense(x)), 1)],
        [SIGMOID, SOFTMAX],
    ),
    "input": (lambda b, x: x, [""]),
}


@pytest.mark.parametrize(("body", "expected"), ENDS.values(), ids=ENDS)
def test_ends(body, expected):
    assert ends_of(graph((2, 6), body)) == expected


def through(function):
    """Put a function between two dense layers."""
    second = relax.const(np.ones((4, 3), np.float32))
    return lambda b, x: relax.op.matmul(b.emit(function(b, b.emit(dense(x)))), second)


FUNCTIONS = {
    "relu": (lambda b, x: relax.op.nn.relu(x), True),
    "clip": (lambda b, x: relax.op.clip(x, 0, 6), True),
    "residual": (lambda b, x: relax.op.add(x, b.emit(relax.op.nn.relu(x))), True),
    "factor": (lambda b, x: relax.op.multiply(x, relax.const(np.float32(2))), True),
    "divided by a constant": (lambda b, x: relax.op.divide(x, relax.const(np.float32(2))), True),
    "sigmoid": (lambda b, x: relax.op.sigmoid(x), False),
    "inner softmax": (lambda b, x: relax.op.nn.softmax(x, 1), False),
    "product": (lambda b, x: relax.op.multiply(x, b.emit(relax.op.nn.relu(x))), False),
    "reciprocal": (lambda b, x: relax.op.divide(relax.const(np.float32(2)), x), False),
}


@pytest.mark.parametrize(("function", "expected"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_piecewise_linear(function, expected):
    assert is_piecewise_linear(graph((2, 6), through(function))) is expected


@pytest.mark.parametrize("end", [relax.op.nn.softmax, relax.op.nn.log_softmax])
def test_the_final_softmax_does_not_count(end):
    assert is_piecewise_linear(graph((2, 6), lambda b, x: end(b.emit(dense(x)), 1)))
