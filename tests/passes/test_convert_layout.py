import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, graph, op_names
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.convert_layout import ConvertLayout
from tvmquant.simulator import simulate

op = relax.op
SHAPE = (2, 4, 6, 6)
RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-127, 128, (4, 4, 3, 3), np.int8)
VALUES = RNG.integers(0, 256, 256).astype(np.uint8)
BIAS = RNG.integers(-500, 500, 4).astype(np.int32)
WINDOW = {
    "strides": [2, 1],
    "padding": [1, 0, 2, 1],
    "dilation": [1, 2],
    "layout": "NCHW",
    "input_zero_point": 3,
    "out_dtype": "int32",
    "id": "layer",
}


def qconv2d(x, weight=WEIGHT, **attrs):
    attrs = WINDOW | {"groups": 1, "choice": "w8a8", "epilogue": 0} | attrs
    return qop.emit(qop.QCONV2D, [x, qop.constant(weight), qop.constant(BIAS)], attrs)


def qconv2d_transpose(x):
    attrs = {"groups": 2, "choice": "w8a8", "epilogue": 0, "output_padding": [1, 0]}
    weight = WEIGHT[:, :2]
    args = [x, qop.constant(weight), qop.constant(BIAS)]
    return qop.emit(qop.QCONV2D_TRANSPOSE, args, WINDOW | {"dilation": [1, 1]} | attrs)


def pool_sum(x):
    return qop.emit(qop.POOL_SUM, [x], WINDOW | {"pool_size": [2, 3]})


def requantize(acc, axis=1, multiplier=(3, 4, 5, 6)):
    constants = [qop.constant(np.int32(a)) for a in (multiplier, [7], [0])]
    attrs = {
        "acc_zero_point": 0,
        "residual_zero_point": 0,
        "output_zero_point": 128,
        "qmin": 0,
        "qmax": 255,
        "axis": axis,
        "compute_dtype": "int64",
        "out_dtype": "uint8",
        "id": "requantize",
    }
    return qop.emit(qop.REQUANTIZE, [acc, *constants], attrs)


def table(q):
    return qop.emit(qop.TABLE, [q, qop.constant(VALUES)], {"out_dtype": "uint8", "id": "table"})


def qmultiply(a, b):
    attrs = {"a_zero_point": 3, "b_zero_point": 5, "out_dtype": "int32", "id": "product"}
    return qop.emit(qop.QMULTIPLY, [a, b], attrs)


def convert(body, *shapes):
    """Convert, and compare the results."""
    module = graph(body, *(shapes or (SHAPE,)), dtype="uint8")
    after = ConvertLayout()(module)
    relax.analysis.well_formed(after)
    inputs = [RNG.integers(0, 256, s).astype(np.uint8) for s in (shapes or (SHAPE,))]
    for got, want in zip(simulate(after, *inputs), simulate(module, *inputs), strict=True):
        np.testing.assert_array_equal(got, want)
    return after


def test_layers_in_a_row_are_transposed_at_the_borders_only():
    def before(emit, x):
        y = emit(requantize(emit(qconv2d(x))))
        return emit(requantize(emit(qconv2d(emit(table(y))))))

    def expected(emit, x):
        def layer(x):
            weight = WEIGHT.transpose(0, 2, 3, 1)
            acc = emit(qconv2d(x, weight, layout="NHWC"))
            return emit(requantize(acc, axis=3))

        y = layer(emit(op.permute_dims(x, [0, 2, 3, 1])))
        y = layer(emit(table(y)))
        return emit(op.permute_dims(y, [0, 3, 1, 2]))

    after = ConvertLayout()(graph(before, SHAPE, dtype="uint8"))
    tvm.ir.assert_structural_equal(after, graph(expected, SHAPE, dtype="uint8"))
    tvm.ir.assert_structural_equal(ConvertLayout()(after), after)


OPERATORS = {
    "qconv2d": qconv2d,
    "qconv2d_transpose": qconv2d_transpose,
    "pool_sum": pool_sum,
    "requantize": requantize,
    "table": table,
    "max_pool2d": lambda x: op.nn.max_pool2d(x, (3, 2), (2, 1), (1, 0, 1, 0)),
    "max_pool2d, ceil": lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), ceil_mode=True),
    "max": lambda x: op.max(x, [2, 3], keepdims=True),
    "max over the last": lambda x: op.max(x, [-1], keepdims=True),
    "pad": lambda x: op.nn.pad(x, [0, 0, 1, 0, 2, 1, 0, 3], "constant", 7.0),
    "strided_slice": lambda x: op.strided_slice(x, [1, 3], [1, 0], [4, 6], [2, 3]),
    "resize2d": lambda x: op.image.resize2d(
        x, (9, 12), method="nearest_neighbor", coordinate_transformation_mode="asymmetric",
        rounding_method="floor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPERATORS)
def test_operators_are_converted(case):
    after = convert(lambda emit, x: emit(OPERATORS[case](x)))
    names = op_names(after)
    assert (names[0], names[-1], len(names)) == ("permute_dims", "permute_dims", 3)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_concat_and_slices(axis):
    def body(emit, x, y):
        z = emit(op.concat([x, emit(table(y))], axis))
        first, second = (emit(op.strided_slice(z, [axis], [i], [i + 2])) for i in (0, 2))
        return emit(table(first)), second

    assert op_names(convert(body, SHAPE, SHAPE)).count("permute_dims") == 4


def test_transposes_of_the_model_itself_cancel():
    def body(emit, x):
        y = emit(requantize(emit(qconv2d(emit(op.permute_dims(x, [0, 3, 1, 2]))))))
        y = emit(table(emit(op.permute_dims(y, [0, 2, 3, 1]))))
        y = emit(requantize(emit(qconv2d(emit(op.permute_dims(y, [0, 3, 1, 2]))))))
        return emit(op.permute_dims(y, [0, 2, 3, 1]))

    assert "permute_dims" not in op_names(convert(body, (2, 24, 24, 4)))


def test_products_that_broadcast():
    body = lambda emit, x, y: emit(requantize(emit(qmultiply(x, y))))  # noqa: E731
    names = op_names(convert(body, SHAPE, (2, 4, 1, 1)))
    assert names.count("permute_dims") == 3


def test_a_reshape_reads_nchw():
    def body(emit, x):
        y = emit(requantize(emit(qconv2d(x))))
        return emit(op.reshape(y, [2, -1])), emit(table(y))

    assert op_names(convert(body)).count("permute_dims") == 3


def test_an_input_is_transposed_once():
    def body(emit, x):
        return emit(qconv2d(x)), emit(table(x)), emit(op.reshape(x, [2, -1]))

    names = op_names(convert(body))
    assert names.count("permute_dims") == 3  # the input, two results; the reshape reads the input


def test_a_value_read_in_nchw_by_two_is_transposed_back_once():
    def body(emit, x):
        y = emit(table(x))
        return emit(op.reshape(y, [2, -1])), emit(op.permute_dims(y, [1, 0, 2, 3]))

    assert op_names(convert(body)).count("permute_dims") == 3


def test_constants_that_vary_by_position_are_transposed():
    multiplier = RNG.integers(1, 9, (1, 1, 6, 6))
    after = convert(lambda emit, x: emit(requantize(x, multiplier=multiplier)))
    (call,) = calls(after, qop.REQUANTIZE)
    np.testing.assert_array_equal(call.args[1].value.numpy(), multiplier.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_other_ranks_are_left_alone(shape):
    module = graph(
        lambda emit, x: emit(table(emit(requantize(x, axis=len(shape) - 1)))), shape, dtype="uint8"
    )
    tvm.ir.assert_structural_equal(ConvertLayout()(module), module)


def test_float_operators_are_left_alone():
    module = graph(lambda emit, x: emit(op.nn.max_pool2d(x, (2, 2))), SHAPE)
    tvm.ir.assert_structural_equal(ConvertLayout()(module), module)
