import math

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.passes.graphs import const, graph, normal, op_names, run_twin
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.passes.canonicalize_ops import CanonicalizeOps

op = relax.op
SHAPE = (2, 4, 6, 6)
CHANNELS = normal(1, 4, 1, 1)
WEIGHT = normal(5, 4, 3, 3)


def chain(*functions):
    """Return a body that emits the functions one after the other."""

    def body(emit, x):
        for function in functions:
            x = emit(function(x))
        return x

    return body


def clip(low, high):
    return lambda x: op.clip(x, low, high)


def pad(*widths, value=0.0):
    return lambda x: op.nn.pad(x, [0, 0, 0, 0, *widths], "constant", value)


def max_pool(padding):
    return lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), padding)


def conv(padding):
    return lambda x: op.nn.conv2d(x, const(WEIGHT), padding=padding)


INF = math.inf
MASK = qop.constant(normal(*SHAPE[2:]) > 0)
REWRITES = {
    "constant first": (
        chain(lambda x: op.add(const(CHANNELS), x), lambda x: op.multiply(const(2.0), x)),
        chain(lambda x: op.add(x, const(CHANNELS)), lambda x: op.multiply(x, const(2.0))),
    ),
    "subtract a constant": (
        chain(lambda x: op.subtract(x, const(CHANNELS))),
        chain(lambda x: op.add(x, const(-CHANNELS))),
    ),
    "subtract from a constant": (
        chain(lambda x: op.subtract(const(CHANNELS), x)),
        chain(
            lambda x: op.multiply(x, const(-np.ones_like(CHANNELS))),
            lambda x: op.add(x, const(CHANNELS)),
        ),
    ),
    "choose by a known mask": (
        chain(lambda x: op.where(MASK, x, const(2.0))),
        chain(
            lambda x: op.multiply(x, const(MASK.value.numpy())),
            lambda x: op.add(x, const(2.0 * ~MASK.value.numpy())),
        ),
    ),
    "set what a known mask leaves out to 0": (
        chain(lambda x: op.where(MASK, const(0.0), x)),
        chain(lambda x: op.multiply(x, const(~MASK.value.numpy()))),
    ),
    "divide by itself": (
        chain(lambda x: op.divide(x, x)),
        chain(lambda x: op.multiply(x, const(0.0)), lambda x: op.add(x, const(1.0))),
    ),
    "divide by an exponential": (
        lambda e, x: e(op.divide(x, e(op.add(e(op.exp(e(op.sin(x)))), const(1.0))))),
        lambda e, x: e(
            op.multiply(x, e(op.divide(const(1.0), e(op.add(e(op.exp(e(op.sin(x)))), const(1.0))))))
        ),
    ),
    "a vector times": (
        chain(lambda x: op.matmul(x, const(np.arange(SHAPE[3])))),
        chain(
            lambda x: op.matmul(x, const(np.arange(SHAPE[3])[:, None])),
            lambda x: op.reshape(x, SHAPE[:3]),
        ),
    ),
    "transposes": (
        chain(
            lambda x: op.permute_dims(x, [0, 2, 3, 1]), lambda x: op.permute_dims(x, [0, 2, 1, 3])
        ),
        chain(lambda x: op.permute_dims(x, [0, 3, 2, 1])),
    ),
    "divide": (
        chain(lambda x: op.divide(x, const([6.0]))),
        chain(lambda x: op.multiply(x, const([1 / 6]))),
    ),
    "maximum and minimum": (
        chain(lambda x: op.maximum(x, const(-1.0)), lambda x: op.minimum(const(2.0), x)),
        chain(clip(-1.0, 2.0)),
    ),
    "maximum with 0": (chain(lambda x: op.maximum(x, const(0.0))), chain(op.nn.relu)),
    "clip below at 0": (chain(clip(0, INF)), chain(op.nn.relu)),
    "relu and clip": (chain(op.nn.relu, clip(-3.0, 6.0)), chain(clip(0.0, 6.0))),
    "disjoint clips": (chain(clip(5.0, 6.0), clip(-1.0, 1.0)), chain(clip(1.0, 1.0))),
    "relu twice": (chain(op.nn.relu, op.nn.relu), chain(op.nn.relu)),
    "no clip": (chain(op.nn.relu, op.tanh, clip(-INF, INF)), chain(op.nn.relu, op.tanh)),
    "flatten": (chain(op.nn.batch_flatten), chain(lambda x: op.reshape(x, [2, 144]))),
    "reshapes": (
        chain(
            lambda x: op.reshape(x, [2, 4, 36]),
            lambda x: op.expand_dims(x, 2),
            lambda x: op.squeeze(x, [2]),
            op.nn.batch_flatten,
        ),
        chain(lambda x: op.reshape(x, [2, 144])),
    ),
    "there and back": (
        chain(op.tanh, lambda x: op.reshape(x, [8, 36]), lambda x: op.reshape(x, SHAPE)),
        chain(op.tanh),
    ),
    "mean over the last axes": (
        chain(lambda x: op.mean(x, [-1, -2], keepdims=True)),
        chain(lambda x: op.mean(x, [2, 3], keepdims=True)),
    ),
    "mean without the axes": (
        chain(lambda x: op.mean(x, [2, 3])),
        chain(lambda x: op.mean(x, [2, 3], keepdims=True), lambda x: op.reshape(x, [2, 4])),
    ),
    "global average and flatten": (
        chain(lambda x: op.mean(x, [2, 3]), lambda x: op.reshape(x, [8])),
        chain(lambda x: op.mean(x, [2, 3], keepdims=True), lambda x: op.reshape(x, [8])),
    ),
    "average of everything": (
        chain(lambda x: op.nn.avg_pool2d(x, (6, 6), (6, 6))),
        chain(lambda x: op.mean(x, [2, 3], keepdims=True)),
    ),
    "pad before a convolution": (
        chain(pad(0, 1, 2, 1), conv((1, 1, 1, 1))),
        chain(conv((1, 3, 2, 2))),
    ),
    "add 0": (chain(op.tanh, lambda x: op.add(x, const(np.zeros((4, 1, 1))))), chain(op.tanh)),
    "subtract 0": (chain(op.tanh, lambda x: op.subtract(x, const(0.0))), chain(op.tanh)),
    "multiply by 1": (chain(op.tanh, lambda x: op.multiply(const(1.0), x)), chain(op.tanh)),
    "divide by 1": (chain(op.tanh, lambda x: op.divide(x, const(1.0))), chain(op.tanh)),
    "same type": (chain(op.tanh, lambda x: op.astype(x, "float32")), chain(op.tanh)),
    "same order": (chain(op.tanh, lambda x: op.permute_dims(x, [0, 1, 2, 3])), chain(op.tanh)),
    "minus infinity before a maximum": (
        chain(pad(0, 1, 2, 1, value=-math.inf), max_pool((1, 0, 0, 0))),
        chain(max_pool((1, 2, 1, 1))),
    ),
    "zeros of a rectified tensor before a maximum": (
        chain(op.nn.relu, pad(0, 1, 0, 1), max_pool(0)),
        chain(op.nn.relu, max_pool((0, 0, 1, 1))),
    ),
    "empty pad": (chain(op.tanh, pad(0, 0, 0, 0)), chain(op.tanh)),
    "concat of one": (chain(op.tanh, lambda x: op.concat([x], 1)), chain(op.tanh)),
    "dropout": (
        chain(op.tanh, lambda x: op.nn.dropout(x, 0.5), lambda x: relax.TupleGetItem(x, 0)),
        chain(op.tanh),
    ),
}

UNCHANGED = {
    "canonical arithmetic": chain(
        lambda x: op.add(x, const(CHANNELS)), lambda x: op.multiply(x, const(2.0))
    ),
    "divide a constant": chain(lambda x: op.divide(const(1.0), x)),
    "leave out by a known mask": chain(lambda x: op.where(MASK, x, const(-1e4))),
    "divide by 0": chain(lambda x: op.divide(x, const(0.0))),
    "two tensors": lambda emit, x: emit(op.subtract(x, emit(op.tanh(x)))),
    "x * sigmoid(x)": lambda emit, x: emit(op.multiply(x, emit(op.sigmoid(x)))),
    "0 that broadcasts": chain(lambda x: op.add(x, const(np.zeros((3, 1, 4, 1, 1))))),
    "maximum per channel": chain(lambda x: op.maximum(x, const(CHANNELS))),
    "mean over channels": chain(lambda x: op.mean(x, [1], keepdims=True)),
    "average of a part": chain(lambda x: op.nn.avg_pool2d(x, (6, 5), (6, 6))),
    "padded average": chain(lambda x: op.nn.avg_pool2d(x, (6, 6), (6, 6), (1, 1, 1, 1))),
    "pad with 1": chain(pad(1, 1, 1, 1, value=1.0), conv(0)),
    "zeros before a maximum": chain(pad(0, 1, 0, 1), max_pool(0)),
    "more padding than window": chain(pad(3, 0, 0, 0, value=-math.inf), max_pool(0)),
    "pad with two readers": lambda emit, x: (
        lambda y: (emit(conv(0)(y)), emit(op.tanh(y)))
    )(emit(pad(1, 1, 1, 1)(x))),
    "clip with two readers": lambda emit, x: (
        lambda y: (emit(clip(-1.0, 2.0)(y)), emit(op.tanh(y)))
    )(emit(clip(-2.0, 1.0)(x))),
    "relu of an addition": chain(lambda x: op.add(x, const(3.0)), clip(0.0, 6.0)),
}  # fmt: skip


@pytest.mark.parametrize("case", REWRITES)
def test_rewrite(case):
    before, expected = (graph(body, SHAPE) for body in REWRITES[case])
    after = CanonicalizeOps()(before)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, expected)
    tvm.ir.assert_structural_equal(CanonicalizeOps()(after), expected)
    x = normal(*SHAPE) * 3
    if case != "dropout":  # which only the import knows
        pair = (run_twin(module, [x])[0] for module in (after, before))
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", UNCHANGED)
def test_unchanged(case):
    module = graph(UNCHANGED[case], SHAPE)
    tvm.ir.assert_structural_equal(CanonicalizeOps()(module), module)


def test_constants_are_computed():
    bias = normal(5)

    def before(emit, x):
        weight = emit(op.permute_dims(emit(op.multiply(const(WEIGHT), const(0.5))), [0, 1, 3, 2]))
        reshaped = emit(op.reshape(const(bias), [1, -1, 1, 1]))
        return emit(op.add(emit(op.nn.conv2d(x, weight)), reshaped))

    def expected(emit, x):
        y = emit(op.nn.conv2d(x, const((WEIGHT * 0.5).transpose(0, 1, 3, 2))))
        return emit(op.add(y, const(bias.reshape(1, 5, 1, 1))))

    after = CanonicalizeOps()(graph(before, SHAPE))
    tvm.ir.assert_structural_equal(after, graph(expected, SHAPE))


def test_a_gemm_of_an_exporter():
    weight, bias = normal(7, 144), normal(7)

    def before(emit, x):
        y = emit(op.matmul(emit(op.nn.batch_flatten(x)), emit(op.permute_dims(const(weight)))))
        return emit(op.add(y, emit(op.multiply(const(bias), const(2.0)))))

    def expected(emit, x):
        y = emit(op.matmul(emit(op.reshape(x, [2, 144])), const(weight.T)))
        return emit(op.add(y, const(bias * 2)))

    after = CanonicalizeOps()(graph(before, SHAPE))
    tvm.ir.assert_structural_equal(after, graph(expected, SHAPE))


def test_a_divisor_may_be_a_long_chain():
    def body(emit, x):
        y = emit(op.exp(x))
        for _ in range(1200):
            y = emit(op.sin(y))
        return emit(op.divide(x, y))

    assert op_names(CanonicalizeOps()(graph(body, SHAPE)))[-2:] == ["divide", "multiply"]


def test_integers_keep_their_arithmetic():
    one = relax.const(1, "int64")
    module = graph(
        lambda emit, x: emit(op.multiply(emit(op.subtract(one, x)), one)), (3,), dtype="int64"
    )
    tvm.ir.assert_structural_equal(CanonicalizeOps()(module), module)


def test_a_symbolic_batch_survives():
    batch = tirx.Var("n", "int64")

    def body(emit, x):
        y = emit(op.mean(x, [2, 3]))
        return emit(op.reshape(y, [batch, -1]))

    after = CanonicalizeOps()(graph(body, (batch, 4, 6, 6)))
    relax.analysis.well_formed(after)
    assert op_names(after) == ["mean", "reshape"]
    x = normal(*SHAPE)
    np.testing.assert_allclose(run_twin(after, [x])[0], x.mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_spans_are_kept():
    module = graph(lambda emit, x: emit(op.maximum(x, const(0.0)), "Relu_3"), SHAPE)
    (_, relu), *_ = bindings_of(CanonicalizeOps()(module)["main"])
    assert span_name(relu) == "Relu_3"


def test_clips_in_a_long_chain_merge_step_by_step():
    bounds = [clip(-count, count) for count in range(1200, 0, -1)]
    module = CanonicalizeOps()(graph(chain(*bounds), SHAPE))
    (call,) = [value for _, value in bindings_of(module["main"]) if isinstance(value, relax.Call)]
    assert [float(bound.value) for bound in call.args[1:]] == [-1.0, 1.0]
