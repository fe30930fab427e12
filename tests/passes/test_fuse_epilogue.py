import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, graph, op_names
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.fuse_epilogue import FuseEpilogue
from tvmquant.simulator import simulate

SHAPE = (2, 4, 6, 6)
CONV = {
    "strides": [1, 1],
    "padding": [1, 1, 1, 1],
    "dilation": [1, 1],
    "groups": 1,
    "layout": "NCHW",
    "input_zero_point": 3,
    "out_dtype": "int32",
    "choice": "w8a8",
    "epilogue": 0,
}
REQUANTIZE = {
    "residual_zero_point": 7,
    "output_zero_point": 128,
    "qmin": 1,
    "qmax": 250,
    "axis": 1,
    "compute_dtype": "int32",
    "out_dtype": "uint8",
}
RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-127, 128, (4, 4, 3, 3), np.int8)
BIAS = RNG.integers(-500, 500, 4).astype(np.int32)
MULTIPLIER = RNG.integers(20, 40, 4).astype(np.int32)
SHIFT = RNG.integers(12, 15, 4).astype(np.int32)
OFFSET = np.zeros(1, np.int32)
TABLE = RNG.integers(0, 256, 256).astype(np.uint8)


def qconv2d(x, *epilogue, **attrs):
    args = [x, qop.constant(WEIGHT), qop.constant(BIAS), *epilogue]
    return qop.emit(qop.QCONV2D, args, CONV | {"id": "conv"} | attrs)


def pool_sum(x, *epilogue, **attrs):
    window = {k: CONV[k] for k in ("strides", "padding", "dilation", "layout", "input_zero_point")}
    attrs = window | {"pool_size": [3, 3], "out_dtype": "int32", "id": "pool"} | attrs
    return qop.emit(qop.POOL_SUM, [x, *epilogue], attrs)


def numbers():
    return [qop.constant(a) for a in (MULTIPLIER, SHIFT, OFFSET)]


def requantize(acc, *residual):
    more = [*residual, qop.constant(MULTIPLIER)] if residual else []
    attrs = REQUANTIZE | {"acc_zero_point": 0, "id": "requantize"}
    return qop.emit(qop.REQUANTIZE, [acc, *numbers(), *more], attrs)


def table(q):
    return qop.emit(qop.TABLE, [q, qop.constant(TABLE)], {"out_dtype": "uint8", "id": "table"})


def check(before, expected):
    module, wanted = (graph(body, SHAPE, dtype="uint8") for body in (before, expected))
    after = FuseEpilogue()(module)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, wanted)
    tvm.ir.assert_structural_equal(FuseEpilogue()(after), wanted)
    x = RNG.integers(0, 256, SHAPE).astype(np.uint8)
    for got, want in zip(simulate(after, x), simulate(module, x), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("accumulate", [qconv2d, pool_sum])
def test_requantization(accumulate):
    check(
        lambda emit, x: emit(requantize(emit(accumulate(x)))),
        lambda emit, x: emit(
            accumulate(x, *numbers(), **REQUANTIZE, **{"epilogue": 1, "residual": 0, "values": 0})
        ),
    )


def test_residual_and_table():
    check(
        lambda emit, x: emit(table(emit(requantize(emit(qconv2d(x)), x)))),
        lambda emit, x: emit(
            qconv2d(
                x,
                *numbers(),
                x,
                qop.constant(MULTIPLIER),
                qop.constant(TABLE),
                **REQUANTIZE | {"epilogue": 1, "residual": 1, "values": 1},
            )
        ),
    )


def test_of_two_tables_the_epilogue_holds_what_both_give():
    second = RNG.integers(-999, 999, 256).astype(np.int16)

    attrs = {"out_dtype": "int16", "id": "second"}
    both = REQUANTIZE | {"epilogue": 1, "residual": 0, "values": 1, "out_dtype": "int16"}

    def before(emit, x):
        first = emit(table(emit(requantize(emit(qconv2d(x))))))
        return emit(qop.emit(qop.TABLE, [first, qop.constant(second)], attrs))

    check(
        before,
        lambda emit, x: emit(qconv2d(x, *numbers(), qop.constant(second[TABLE]), **both)),
    )


def test_a_residual_computed_after_the_accumulator():
    def before(emit, x):
        acc = emit(qconv2d(x))
        return emit(requantize(acc, emit(table(x))))

    module = graph(before, SHAPE, dtype="uint8")
    after = FuseEpilogue()(module)
    relax.analysis.well_formed(after)
    assert op_names(after) == ["table", "qconv2d"]


def test_a_tensor_with_another_reader_stays():
    def accumulator_read_twice(emit, x):
        acc = emit(qconv2d(x))
        return emit(requantize(acc)), acc

    module = graph(accumulator_read_twice, SHAPE, dtype="uint8")
    tvm.ir.assert_structural_equal(FuseEpilogue()(module), module)

    def requantized_read_twice(emit, x):
        q = emit(requantize(emit(qconv2d(x))))
        return emit(table(q)), q

    after = FuseEpilogue()(graph(requantized_read_twice, SHAPE, dtype="uint8"))
    assert op_names(after) == ["qconv2d", "table"]
    assert qop.attributes(calls(after, qop.QCONV2D)[0])["values"] == 0


@pytest.mark.parametrize(
    "body",
    [
        lambda emit, x: emit(requantize(x)),
        lambda emit, x: emit(table(x)),
        lambda emit, x: emit(table(emit(requantize(x, x)))),
        lambda emit, x: emit(
            requantize(emit(qconv2d(emit(relax.op.strided_slice(x, [0], [0], [1])))), x)
        ),
    ],
    ids=[
        "no accumulator",
        "a table alone",
        "a table after an addition",
        "a residual that is wider",
    ],
)
def test_unchanged(body):
    module = graph(body, SHAPE, dtype="uint8")
    tvm.ir.assert_structural_equal(FuseEpilogue()(module), module)
