import numpy as np
import pytest
from tvm import relax, tirx

from tests.passes.graphs import calls, check, const, graph, normal
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.passes import scale_factors

op = relax.op
SHAPE = (2, 4, 8, 8)
FACTORS = np.linspace(0.1, 1.0, 4).reshape(1, 4, 1, 1)


def mover(body, batch=2):
    """Return the one call of a graph that moves a tensor of SHAPE."""
    module = graph(lambda emit, x: emit(body(x)), (batch, *SHAPE[1:]))
    return next(v for _, v in bindings_of(module["main"]) if isinstance(v, relax.Call))


MOVED = {
    "transpose": (lambda x: op.permute_dims(x, [0, 2, 3, 1]), FACTORS.reshape(1, 1, 1, 4)),
    "slice of channels": (
        lambda x: op.strided_slice(x, [1], [1], [4], [2]),
        FACTORS[:, 1::2],
    ),
    "slice of rows": (lambda x: op.strided_slice(x, [2], [1], [4]), FACTORS),
    "flatten": (
        lambda x: op.reshape(x, (2, 256)),
        np.repeat(FACTORS.reshape(1, 4), 64, axis=1),
    ),
    "split channels": (
        lambda x: op.reshape(x, (2, 2, 2, 8, 8)),
        FACTORS.reshape(1, 2, 2, 1, 1),
    ),
    "take channels": (
        lambda x: op.take(x, qop.constant(np.array([3, 0, 0])), 1),
        FACTORS[:, [3, 0, 0]],
    ),
    "take rows": (lambda x: op.take(x, qop.constant(np.array([3, 0])), 2), FACTORS),
    "repeat": (lambda x: op.tile(x, [1, 2, 3, 1]), np.tile(FACTORS, (1, 2, 1, 1))),
    "expand": (
        lambda x: op.broadcast_to(x, (2, 2, 4, 8, 8)),
        FACTORS.reshape(1, 1, 4, 1, 1),
    ),
    "into the batch": (lambda x: op.reshape(x, (8, 1, 8, 8)), None),
    "pad rows": (lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 0]), FACTORS),
    "pad channels": (
        lambda x: op.nn.pad(x, [0, 0, 1, 2, 0, 0, 0, 0]),
        FACTORS[:, [0, 0, 1, 2, 3, 3, 3]],
    ),
    "reflect channels": (
        lambda x: op.nn.pad(x, [0, 0, 1, 2, 0, 0, 0, 0], pad_mode="reflect"),
        FACTORS[:, [1, 0, 1, 2, 3, 2, 1]],
    ),
    "pad with a value": (lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 0], pad_value=3.0), None),
    "max pooling": (lambda x: op.nn.max_pool2d(x, (2, 2)), FACTORS),
    "greatest of a plane": (lambda x: op.max(x, [2, 3], keepdims=True), FACTORS),
    "greatest of channels": (lambda x: op.max(x, [1], keepdims=True), None),
    "resize": (
        lambda x: op.image.resize2d(x, (16, 16), method="nearest_neighbor"),
        FACTORS,
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_factors_follow_what_they_scale(name):
    body, expected = MOVED[name]
    found = scale_factors.moved(mover(body), [FACTORS])
    if expected is None:
        assert found is None
        return
    np.testing.assert_array_equal(found, expected)
    # the real values are the same on either way
    call, x = mover(body), np.abs(normal(*SHAPE)) + 1.0
    run = lambda v: _evaluate(call, v)  # noqa: E731
    np.testing.assert_allclose(run(x * FACTORS), run(x) * found, rtol=1e-6)


def _evaluate(call, x):
    from tests.passes.graphs import run_twin

    def body(emit, v):
        moved = relax.Call(call.op, [v, *call.args[1:]], call.attrs, call.ty_args)
        return emit(moved)

    return run_twin(graph(body, SHAPE), [x.astype(np.float32)])[0]


def test_one_factor_follows_anything():
    call = mover(lambda x: op.reshape(x, (8, 1, 64)))
    assert scale_factors.moved(call, [np.ones((1, 1, 1, 1))]).shape == (1, 1, 1)


def test_a_symbolic_batch_is_no_obstacle():
    n = tirx.Var("N", "int64")
    call = mover(lambda x: op.reshape(x, (n, 256)), batch=n)
    assert scale_factors.moved(call, [FACTORS]).shape == (1, 256)


def test_inputs_of_a_concat_keep_their_factors():
    module = graph(lambda emit, x: emit(op.concat([x, op.permute_dims(x, [0, 1, 3, 2])], 1)), SHAPE)
    (call,) = calls(module, "relax.concat")
    found = scale_factors.moved(call, [FACTORS, np.full((1, 1, 1, 1), 7.0)])
    assert found.reshape(-1).tolist() == [*FACTORS.reshape(-1), 7.0, 7.0, 7.0, 7.0]
    rows = graph(lambda emit, x: emit(op.concat([x, x], 2)), SHAPE)
    (call,) = calls(rows, "relax.concat")
    found = scale_factors.moved(call, [np.full((1, 1, 1, 1), v) for v in (1.0, 2.0)])
    assert found.shape == (1, 1, 16, 1)


def joined(emit, x):
    """Join tensors whose ranges differ by 50."""
    a = emit(op.nn.relu(emit(op.nn.conv2d(x, const(normal(4, 4, 3, 3)), padding=1), "a")))
    b = emit(op.nn.conv2d(x, const(normal(4, 4, 1, 1, scale=0.02)), padding=0), "b")
    return emit(op.concat([a, b], 1), "joined")


def weight(*shape):
    """Return a weight for which both parts matter."""
    return const(normal(*shape) * np.where(np.arange(shape[1]) < 4, 1.0, 50.0)[:, None, None])


READERS = {
    "padded convolution": lambda e, x: e(op.nn.conv2d(x, weight(5, 8, 3, 3), padding=1)),
    "depthwise": lambda e, x: e(
        op.nn.conv2d(x, const(normal(8, 1, 3, 3)), padding=1, groups=8), "reader"
    ),
    "transposed": lambda e, x: e(op.nn.conv2d_transpose(x, const(normal(8, 5, 2, 2)), strides=2)),
    "dense": lambda e, x: e(
        op.matmul(e(op.reshape(e(op.mean(x, [2, 3], keepdims=True)), (2, 8))), const(normal(8, 3)))
    ),
    "flattened dense": lambda e, x: e(
        op.matmul(e(op.reshape(x, (2, 512))), const(normal(512, 3, scale=0.1)))
    ),
    "residual": lambda e, x: e(
        op.add(e(op.nn.conv2d(x, weight(8, 8, 1, 1)), "reader"), e(op.nn.max_pool2d(x, (1, 1))))
    ),
    "sum": lambda e, x: e(op.add(x, e(op.nn.max_pool2d(x, (3, 3), (1, 1), (1, 1, 1, 1))))),
    "product": lambda e, x: e(op.multiply(x, e(op.mean(x, [2, 3], keepdims=True)))),
    "affine": lambda e, x: e(op.nn.relu(e(op.multiply(x, const(normal(1, 8, 1, 1)))))),
    "average": lambda e, x: e(op.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1))),
    "table": lambda e, x: e(op.sigmoid(x)),
    "gate": lambda e, x: e(op.multiply(x, e(op.sigmoid(x)))),
    "output": lambda e, x: x,
    "output in another layout": lambda e, x: e(op.permute_dims(x, [0, 2, 3, 1])),
    "output of rank 3": lambda e, x: e(op.reshape(x, (2, 8, 64))),
    "output with the batch mixed in": lambda e, x: e(op.reshape(x, (16, 8, 8))),
}


# They take one scale, and so what they read is requantized (and rounded) once more.
ONE_SCALE = {"table": 10.0, "gate": 1.5, "output with the batch mixed in": 1.5}


@pytest.mark.parametrize("name", READERS)
def test_readers_absorb_the_scales_of_a_concat(name):
    module = graph(lambda e, x: READERS[name](e, joined(e, x)), SHAPE)
    levels = check(module, normal(*SHAPE), steps=ONE_SCALE.get(name, 1.5))
    requantized = len(calls(levels.integer, qop.REQUANTIZE))
    made_by_requantizing = [
        call for call in calls(levels.calibrated, qop.FAKE_QUANT)
        if qop.attributes(call)["role"] != "weight" and qop.attributes(call)["id"] != "x0"
    ]  # fmt: skip
    tables = len(calls(levels.integer, qop.TABLE))
    extra = 1 if name in ONE_SCALE else 0
    assert requantized + tables == len(made_by_requantizing) + extra
