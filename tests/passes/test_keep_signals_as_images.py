"""Between convolutions of signals stands nothing but images; the results stay what they are."""

import numpy as np
import pytest
from tvm import relax, tirx

from tests.passes.graphs import const, graph, normal, op_names, run_twin
from tvmquant.passes.keep_signals_as_images import KeepSignalsAsImages

op = relax.op
N = tirx.Var("N", "int64")
WEIGHT = normal(4, 4, 1, 3)
CONV = "nn.conv2d"


def image(x):
    batch, channels, width = x.ty.shape.values
    return op.reshape(x, (batch, channels, 1, width))


def signal(x):
    batch, channels, _, width = x.ty.shape.values
    return op.reshape(x, (batch, channels, width))


def conv(emit, x):
    seen = emit(image(x))
    return emit(signal(emit(op.nn.conv2d(seen, const(WEIGHT), padding=[0, 1, 0, 1]))))


BETWEEN = {
    "activation": (lambda emit, a, x: emit(op.nn.relu(a)), ["nn.relu"]),
    "constant": (lambda emit, a, x: emit(op.multiply(a, const(normal(4, 1)))), ["multiply"]),
    "row": (lambda emit, a, x: emit(op.add(a, const(normal(9)))), ["add"]),
    "slopes": (lambda emit, a, x: emit(op.nn.prelu(a, const(normal(4)), 1)), ["nn.prelu"]),
    "residual": (lambda emit, a, x: emit(op.add(x, a)), ["add"]),
    "join": (
        lambda emit, a, x: emit(op.concat([a, emit(op.nn.relu(a))], 2)),
        ["nn.relu", "concat"],
    ),
    "cut": (
        lambda emit, a, x: emit(op.strided_slice(a, [2], [1], [8], [2])),
        ["strided_slice"],
    ),
    "padding": (
        lambda emit, a, x: emit(op.nn.pad(a, [0, 0, 0, 0, 2, 1], "constant", 0.5)),
        ["nn.pad"],
    ),
    "mean": (lambda emit, a, x: emit(op.mean(a, [2], True)), ["mean"]),
    "sum of channels": (
        lambda emit, a, x: emit(op.multiply(a, emit(op.sum(a, [1], True)))),
        ["sum", "multiply"],
    ),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_what_lies_between_convolutions_works_on_images(case):
    between, names = BETWEEN[case]
    before = graph(lambda emit, x: conv(emit, between(emit, conv(emit, x), x)), (N, 4, 9))
    after = KeepSignalsAsImages()(before)
    x = normal(2, 4, 9)
    np.testing.assert_array_equal(run_twin(after, [x])[0], run_twin(before, [x])[0])
    found = [name for name in op_names(after) if name != "reshape"]
    assert found == [CONV, *names, CONV]
    # one at each end, and one for a second tensor that is no image yet
    assert op_names(after).count("reshape") == (3 if case == "residual" else 2)
    relax.analysis.well_formed(after)


def test_a_signal_is_made_once_where_it_is_needed():
    def body(emit, x):
        a = emit(op.nn.relu(conv(emit, x)))
        return emit(op.nn.softmax(a, 2)), emit(op.permute_dims(a, [0, 2, 1]))

    after = KeepSignalsAsImages()(graph(body, (N, 4, 9)))
    assert op_names(after) == [
        "reshape",
        CONV,
        "nn.relu",
        "reshape",
        "nn.softmax",
        "permute_dims",
    ]


@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 4, 3, 3)])
def test_other_tensors_stay_as_they_are(shape):
    def body(emit, x):
        flat = emit(op.reshape(x, (2, 4, 9)))
        return emit(op.nn.relu(flat))

    before = graph(body, shape)
    assert op_names(KeepSignalsAsImages()(before)) == op_names(before)
