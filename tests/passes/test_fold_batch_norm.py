import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import const, graph, normal, op_names, run_twin
from tvmquant.errors import ModelError
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.passes.fold_batch_norm import FoldBatchNorm

op = relax.op
EPSILON = 1e-5


def parameters(channels, seed=1):
    gamma, beta, mean = normal(3, channels, seed=seed)
    return gamma, beta, mean, normal(channels, seed=seed) ** 2 + 0.5


def batch_norm(emit, x, values, name="", axis=1, **options):
    norm = op.nn.batch_norm(
        x, *map(const, values), axis=axis, epsilon=EPSILON, training=False, **options
    )
    return emit(relax.TupleGetItem(emit(norm, name), 0))


def scale_and_shift(values):
    gamma, beta, mean, variance = (v.astype(np.float64) for v in values)
    scale = gamma / np.sqrt(variance + EPSILON)
    return scale, beta - mean * scale


def convolution(groups=1, padding=1):
    weight = normal(6, 4 // groups, 3, 3)
    return (
        (2, 4, 5, 5),
        6,
        weight,
        lambda x, w: op.nn.conv2d(x, w, padding=padding, groups=groups),
    )


def transposed(groups=1):
    weight = normal(4, 6 // groups, 3, 3)
    return (
        (2, 4, 5, 5),
        6,
        weight,
        lambda x, w: op.nn.conv2d_transpose(x, w, strides=2, padding=1, groups=groups),
    )


def dense(*batch):
    return (*batch, 4), 6, normal(4, 6), op.matmul


LAYERS = {
    "conv2d": convolution(),
    "grouped": convolution(groups=2),
    "transposed": transposed(),
    "transposed grouped": transposed(groups=2),
    "dense": dense(3),
}


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_normalization_after_a_layer(layer, with_bias):
    shape, outputs, weight, call = LAYERS[layer]
    values = parameters(outputs)
    bias = normal(outputs, seed=2).reshape(-1, *(1,) * (len(shape) - 2))

    def before(emit, x):
        y = emit(call(x, const(weight)), "layer")
        y = emit(op.add(y, const(bias)), "layer") if with_bias else y
        return batch_norm(emit, y, values, "norm")

    module = graph(before, shape)
    after = FoldBatchNorm()(module)
    relax.analysis.well_formed(after)
    (name, *_), x = op_names(module), normal(*shape)
    assert op_names(after) == [name, "add"]
    assert {span_name(v) for _, v in bindings_of(after["main"]) if span_name(v)} == {"layer"}
    np.testing.assert_allclose(*(run_twin(m, [x])[0] for m in (module, after)), atol=1e-5)
    tvm.ir.assert_structural_equal(FoldBatchNorm()(after), after)


def test_convolution_with_bias_exactly():
    weight, bias, values = normal(6, 4, 3, 3), normal(6, seed=2), parameters(6)
    scale, shift = scale_and_shift(values)

    def before(emit, x):
        y = emit(op.nn.conv2d(x, const(weight), padding=1))
        return batch_norm(emit, emit(op.add(y, const(bias.reshape(1, 6, 1, 1)))), values)

    def expected(emit, x):
        y = emit(op.nn.conv2d(x, const(weight * scale[:, None, None, None]), padding=1))
        return emit(op.add(y, const((bias * scale + shift).reshape(1, 6, 1, 1))))

    after = FoldBatchNorm()(graph(before, (2, 4, 5, 5)))
    tvm.ir.assert_structural_equal(after, graph(expected, (2, 4, 5, 5)))


def test_depthwise_convolution():
    weight, values = normal(4, 1, 3, 3), parameters(4)

    def before(emit, x):
        y = emit(op.nn.conv2d(x, const(weight), padding=1, groups=4))
        return batch_norm(emit, y, values)

    module = graph(before, (2, 4, 5, 5))
    after, x = FoldBatchNorm()(module), normal(2, 4, 5, 5)
    assert op_names(after) == ["nn.conv2d", "add"]
    np.testing.assert_allclose(*(run_twin(m, [x])[0] for m in (module, after)), atol=1e-5)


FORWARD = {
    "conv2d": convolution(padding=0),
    "grouped": convolution(groups=2, padding=0),
    "dense": dense(3),
}
PADDED = {
    "conv2d": convolution(),
    "grouped": convolution(groups=2),
    "transposed": transposed(),
    "transposed grouped": transposed(groups=2),
}


@pytest.mark.parametrize("layer", FORWARD)
def test_normalization_before_a_layer_without_padding(layer):
    shape, _, weight, call = FORWARD[layer]
    values = parameters(4)
    module = graph(lambda emit, x: emit(call(batch_norm(emit, x, values), const(weight))), shape)
    after, x = FoldBatchNorm()(module), normal(*shape)
    assert len(op_names(after)) == 2
    assert op_names(after)[1] == "add"
    np.testing.assert_allclose(*(run_twin(m, [x])[0] for m in (module, after)), atol=1e-5)


@pytest.mark.parametrize("layer", PADDED)
@pytest.mark.parametrize("shifted", [False, True])
def test_normalization_before_a_border_is_folded_without_shift_only(layer, shifted):
    shape, _, weight, call = PADDED[layer]
    gamma, beta, mean, variance = parameters(4)
    values = (gamma, beta, mean, variance) if shifted else (gamma, 0 * beta, 0 * mean, variance)
    module = graph(lambda emit, x: emit(call(batch_norm(emit, x, values), const(weight))), shape)
    after, x = FoldBatchNorm()(module), normal(*shape)
    (*_, name), names = op_names(module), op_names(after)
    assert names == (["multiply", "add", name] if shifted else [name])
    np.testing.assert_allclose(*(run_twin(m, [x])[0] for m in (module, after)), atol=1e-5)


def test_both_sides_of_a_layer_are_folded_at_once():
    weight = normal(6, 4, 1, 1)

    def before(emit, x):
        y = emit(op.nn.conv2d(batch_norm(emit, x, parameters(4)), const(weight)))
        return batch_norm(emit, y, parameters(6))

    module = graph(before, (2, 4, 5, 5))
    after, x = FoldBatchNorm()(module), normal(2, 4, 5, 5)
    assert op_names(after) == ["nn.conv2d", "add"]
    np.testing.assert_allclose(*(run_twin(m, [x])[0] for m in (module, after)), atol=1e-5)


def test_a_layer_with_another_reader_keeps_its_weight():
    weight, values = normal(6, 4, 3, 3), parameters(6)
    scale, shift = scale_and_shift(values)

    def before(emit, x):
        y = emit(op.nn.conv2d(x, const(weight)))
        return batch_norm(emit, y, values), emit(op.tanh(y))

    def expected(emit, x):
        y = emit(op.nn.conv2d(x, const(weight)))
        z = emit(op.multiply(y, const(scale.reshape(1, 6, 1, 1))))
        return emit(op.add(z, const(shift.reshape(1, 6, 1, 1)))), emit(op.tanh(y))

    after = FoldBatchNorm()(graph(before, (2, 4, 5, 5)))
    tvm.ir.assert_structural_equal(after, graph(expected, (2, 4, 5, 5)))


def test_a_normalization_with_two_readers_stays_before_both():
    weight = normal(6, 4, 1, 1)

    def before(emit, x):
        y = batch_norm(emit, x, parameters(4))
        return emit(op.nn.conv2d(y, const(weight))), emit(op.nn.conv2d(y, const(weight)))

    after = FoldBatchNorm()(graph(before, (2, 4, 5, 5)))
    assert op_names(after) == ["multiply", "add", "nn.conv2d", "nn.conv2d"]


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 5, 5)])
def test_a_normalization_that_nothing_takes_becomes_multiply_and_add(shape):
    def before(emit, x):
        y = emit(op.nn.relu(x))
        return emit(op.nn.relu(batch_norm(emit, y, parameters(6), "norm")))

    module = graph(before, shape)
    after, x = FoldBatchNorm()(module), normal(*shape)
    assert op_names(after) == ["nn.relu", "multiply", "add", "nn.relu"]
    assert [span_name(v) for _, v in bindings_of(after["main"])][1:3] == ["norm", "norm"]
    np.testing.assert_allclose(*(run_twin(m, [x])[0] for m in (module, after)), atol=1e-5)


def test_consecutive_normalizations_and_constants_merge():
    values = parameters(6), parameters(6, seed=5)

    def before(emit, x):
        y = batch_norm(emit, emit(op.nn.relu(x)), values[0])
        y = emit(op.multiply(y, const(3.0)))
        return batch_norm(emit, emit(op.add(y, const(normal(6, 1, 1)))), values[1])

    module = graph(before, (2, 6, 5, 5))
    after, x = FoldBatchNorm()(module), normal(2, 6, 5, 5)
    assert op_names(after) == ["nn.relu", "multiply", "add"]
    np.testing.assert_allclose(*(run_twin(m, [x])[0] for m in (module, after)), atol=1e-5)


def test_channelwise_arithmetic_after_a_layer_is_folded():
    weight, factor = normal(6, 4, 3, 3), normal(6, 1, 1, seed=3)

    def before(emit, x):
        y = emit(op.nn.conv2d(x, const(weight)))
        y = emit(op.multiply(emit(op.add(y, const(0.5))), const(factor)))
        return emit(op.add(y, const(0.25)))

    def expected(emit, x):
        scale = factor.astype(np.float64).reshape(6, 1, 1, 1)
        y = emit(op.nn.conv2d(x, const(weight * scale)))
        return emit(op.add(y, const((0.5 * scale + 0.25).reshape(1, 6, 1, 1))))

    after = FoldBatchNorm()(graph(before, (2, 4, 5, 5)))
    tvm.ir.assert_structural_equal(after, graph(expected, (2, 4, 5, 5)))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            lambda emit, x: emit(op.add(emit(op.nn.conv2d(x, const(normal(6, 4, 1, 1)))),
                                        const(normal(1, 6, 1, 1)))),
            id="a bias",
        ),
        pytest.param(
            lambda emit, x: emit(op.multiply(emit(op.nn.conv2d(x, const(normal(6, 4, 1, 1)))),
                                             const(normal(1, 6, 5, 5)))),
            id="a factor per position",
        ),
        pytest.param(
            lambda emit, x: emit(op.multiply(emit(op.nn.conv2d(x, const(normal(1, 4, 1, 1)))),
                                             const(normal(1, 6, 1, 1)))),
            id="a factor that broadcasts the tensor",
        ),
        pytest.param(
            lambda emit, x: emit(op.nn.conv2d(emit(op.nn.relu(emit(op.multiply(x, const(2.0))))),
                                              const(normal(6, 4, 1, 1)))),
            id="a relu in between",
        ),
        pytest.param(
            lambda emit, x: emit(op.multiply(emit(op.matmul(x, const(normal(2, 4, 5, 3)))),
                                             const(2.0))),
            id="a batched product",
        ),
        pytest.param(
            lambda emit, x: emit(op.multiply(emit(op.nn.conv2d(x, emit(op.nn.relu(
                const(normal(6, 4, 1, 1)))))), const(2.0))),
            id="a computed weight",
        ),
    ],
)  # fmt: skip
def test_unchanged(body):
    module = graph(body, (2, 4, 5, 5))
    after = FoldBatchNorm()(module)
    tvm.ir.assert_structural_equal(after, module)


def test_training_and_computed_parameters_are_left_alone():
    def training(emit, x):
        norm = op.nn.batch_norm(x, *map(const, parameters(4)), axis=1, training=True)
        return emit(relax.TupleGetItem(emit(norm), 0))

    def computed(emit, x):
        gamma, *others = map(const, parameters(4))
        norm = op.nn.batch_norm(x, emit(op.exp(gamma)), *others, axis=1, training=False)
        return emit(relax.TupleGetItem(emit(norm), 0))

    for body in (training, computed):
        module = graph(body, (2, 4, 5, 5))
        tvm.ir.assert_structural_equal(FoldBatchNorm()(module), module)


def test_without_scale_and_center():
    weight, values = normal(6, 4, 1, 1), parameters(6)
    plain = np.ones(6, np.float32), np.zeros(6, np.float32), *values[2:]

    def network(parameters, **options):
        return graph(
            lambda emit, x: batch_norm(
                emit, emit(op.nn.conv2d(x, const(weight))), parameters, **options
            ),
            (2, 4, 5, 5),
        )

    after = FoldBatchNorm()(network(values, scale=False, center=False))
    tvm.ir.assert_structural_equal(after, FoldBatchNorm()(network(plain)))


def test_the_running_statistics_are_constants():
    values = parameters(4)

    def body(emit, x):
        norm = emit(op.nn.batch_norm(x, *map(const, values), axis=1, training=False))
        return tuple(emit(relax.TupleGetItem(norm, i)) for i in range(3))

    results = run_twin(FoldBatchNorm()(graph(body, (2, 4, 5, 5))), [normal(2, 4, 5, 5)])
    np.testing.assert_array_equal(results[1], values[2])
    np.testing.assert_array_equal(results[2], values[3])


def test_a_negative_variance_is_refused():
    gamma, beta, mean, variance = parameters(4)
    variance[2] = -1.0
    module = graph(
        lambda emit, x: batch_norm(emit, x, (gamma, beta, mean, variance), "norm_3"), (2, 4, 5, 5)
    )
    with pytest.raises(ModelError, match=r"norm_3.*channel 2"):
        FoldBatchNorm()(module)


def test_float64_until_the_end():
    # 1 + 1e-4 and its reciprocal: two float32 roundings would leave one behind.
    weight = normal(6, 4, 1, 1)
    factor = np.float32(1.0001)

    def before(emit, x):
        y = emit(op.nn.conv2d(x, const(weight)))
        for _ in range(20):
            y = emit(op.multiply(y, const(factor)))
        return y

    after = FoldBatchNorm()(graph(before, (2, 4, 5, 5)))
    (_, call), *_ = bindings_of(after["main"])
    exact = weight.astype(np.float64) * np.float64(factor) ** 20
    np.testing.assert_array_equal(call.args[1].value.numpy(), exact.astype(np.float32))
