"""Layer normalizations in pieces become one operator, which computes the same."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.graphs import const, graph, normal, op_names, run_twin
from tvmquant.passes.canonicalize_ops import CanonicalizeOps
from tvmquant.passes.fuse_layer_norm import FuseLayerNorm

op = relax.op
SHAPE = (2, 5, 6, 7)
EPSILON = const(np.float32(1e-3))


def squared(how):
    return {
        "power": lambda d: op.power(d, const(np.float32(2))),
        "product": lambda d: op.multiply(d, d),
        "square": op.square,
    }[how]


def pieces(emit, x, axes, square="power", quotient="sqrt"):
    d = emit(op.subtract(x, emit(op.mean(x, axes, keepdims=True))))
    variance = emit(op.mean(emit(squared(square)(d)), axes, keepdims=True))
    total = emit(op.add(variance, EPSILON))
    if quotient == "rsqrt":
        return emit(op.multiply(d, emit(op.rsqrt(total))))
    root = emit(op.sqrt(total))
    if quotient == "inverse":
        return emit(op.multiply(emit(op.divide(const(np.float32(1)), root)), d))
    return emit(op.divide(d, root))


@pytest.mark.parametrize(
    ("axes", "gamma", "square", "quotient"),
    [
        ([-1], (7,), "power", "sqrt"),
        ([-1], (7,), "product", "rsqrt"),
        ([1], (1, 5, 1, 1), "square", "inverse"),
        ([2, 3], (6, 7), "power", "sqrt"),
    ],
)
def test_pieces_become_one(axes, gamma, square, quotient):
    def body(emit, x):
        y = pieces(emit, x, axes, square, quotient)
        scaled = emit(op.multiply(const(normal(*gamma)), y))
        return emit(op.add(scaled, const(normal(*gamma, seed=1))))

    before = graph(body, SHAPE)
    after = FuseLayerNorm()(CanonicalizeOps()(before))
    relax.analysis.well_formed(after)
    assert op_names(after) == ["nn.layer_norm"]
    x = normal(*SHAPE, scale=3.0)
    np.testing.assert_allclose(run_twin(after, [x])[0], run_twin(before, [x])[0], atol=2e-5)


def test_parameters_along_other_axes_stay_outside():
    module = graph(
        lambda emit, x: emit(op.multiply(pieces(emit, x, [-1]), const(normal(5, 1, 1)))), SHAPE
    )
    assert op_names(FuseLayerNorm()(module)) == ["nn.layer_norm", "multiply"]


def test_other_quotients_stay():
    def body(emit, x):
        d = emit(op.subtract(x, emit(op.mean(x, [-1], keepdims=True))))
        variance = emit(op.mean(emit(op.square(x)), [-1], keepdims=True))
        return emit(op.divide(d, emit(op.sqrt(emit(op.add(variance, EPSILON))))))

    module = graph(body, SHAPE)
    assert "nn.layer_norm" not in op_names(FuseLayerNorm()(module))
