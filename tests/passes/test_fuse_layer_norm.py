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


def of_moments(emit, x, axes, gamma, *, kept, clipped=True):
    """As JAX and TensorFlow compute it: sums by a factor, and the mean of squares."""
    count = np.prod([x.ty.shape.values[axis].value for axis in axes])
    whole = [1 if i in axes else n.value for i, n in enumerate(x.ty.shape.values)]

    def mean(v):
        total = emit(op.sum(v, axes, keepdims=kept))
        return emit(op.multiply(total, const(np.float32(1 / count))))

    m = mean(x)
    v = emit(op.subtract(mean(emit(op.multiply(x, x))), emit(op.multiply(m, m))))
    v = emit(op.nn.relu(v)) if clipped else v
    if not kept:
        m, v = (emit(op.reshape(s, whole)) for s in (m, v))
    inverse = emit(op.divide(const(np.float32(1)), emit(op.sqrt(emit(op.add(v, EPSILON))))))
    return emit(op.multiply(emit(op.subtract(x, m)), emit(op.multiply(inverse, gamma))))


@pytest.mark.parametrize(
    ("axes", "gamma", "options"),
    [
        ([3], (7,), {"kept": True}),
        ([1], (5, 1, 1), {"kept": False}),
        ([3], (7,), {"kept": False, "clipped": False}),
    ],
)
def test_moments_become_one(axes, gamma, options):
    def body(emit, x):
        y = of_moments(emit, x, axes, const(normal(*gamma)), **options)
        return emit(op.add(y, const(normal(*gamma, seed=1))))

    before = graph(body, SHAPE)
    after = FuseLayerNorm()(CanonicalizeOps()(before))
    assert op_names(after) == ["nn.layer_norm"]
    x = normal(*SHAPE, scale=3.0)
    np.testing.assert_allclose(run_twin(after, [x])[0], run_twin(before, [x])[0], atol=5e-5)


def test_moments_of_another_count_or_scaled_along_other_axes_stay():
    def body(emit, x):
        return of_moments(emit, x, [3], const(normal(6, 1)), kept=True)

    module = CanonicalizeOps()(graph(body, SHAPE))
    assert "nn.layer_norm" not in op_names(FuseLayerNorm()(module))

    def counted_wrongly(emit, x):
        total = emit(op.sum(x, [3], keepdims=True))
        m = emit(op.multiply(total, const(np.float32(1 / 6))))
        d = emit(op.subtract(x, m))
        v = emit(op.mean(emit(op.multiply(d, d)), [3], keepdims=True))
        return emit(op.divide(d, emit(op.sqrt(emit(op.add(v, EPSILON))))))

    module = CanonicalizeOps()(graph(counted_wrongly, SHAPE))
    assert "nn.layer_norm" not in op_names(FuseLayerNorm()(module))


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
