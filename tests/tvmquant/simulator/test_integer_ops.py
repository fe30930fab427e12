import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmquant import arithmetic
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.simulator import calls

NHWC = (0, 2, 3, 1)
NCHW = (0, 3, 1, 2)
CONV = {
    "strides": [2, 1],
    "padding": [1, 0, 2, 1],
    "dilation": [1, 2],
    "groups": 2,
    "input_zero_point": 7,
    "layout": "NCHW",
    "out_dtype": "int32",
    "id": "conv",
    "epilogue": 0,
}
TRANSPOSED = CONV | {"output_padding": [1, 0], "padding": [1, 0, 1, 1], "id": "deconv"}
EPILOGUE = {
    "epilogue": 1,
    "acc_zero_point": 0,
    "residual_zero_point": 5,
    "output_zero_point": 9,
    "qmin": 3,
    "qmax": 250,
    "axis": 1,
    "compute_dtype": "int64",
    "out_dtype": "uint8",
}


def emit(name, arrays, attrs):
    """Return a graph builder for one operator: variables first, then constants."""
    return lambda builder, *x: qop.emit(name, [*x, *map(qop.constant, arrays)], attrs)


def operands(seed=0, channels=4):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (3, 4, 6, 5)).astype(np.uint8)
    weight = rng.integers(-127, 128, (channels, 2, 3, 2)).astype(np.int8)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    multiplier = rng.integers(2**18, 2**20, channels)
    shift = rng.integers(24, 27, channels)
    offset = rng.integers(-(2**26), 2**26, channels)
    return x, weight, bias, multiplier, shift, offset


@pytest.mark.parametrize(
    ("name", "attrs"), [(qop.QCONV2D, CONV), (qop.QCONV2D_TRANSPOSE, TRANSPOSED)]
)
def test_layouts_agree(run_graph, name, attrs):
    x, weight, bias, *numbers = operands()
    attrs = attrs | EPILOGUE
    (nchw,) = run_graph(emit(name, [weight, bias, *numbers], attrs), x)
    attrs |= {"layout": "NHWC", "axis": 3}
    (nhwc,) = run_graph(
        emit(name, [weight.transpose(NHWC), bias, *numbers], attrs), x.transpose(NHWC)
    )
    np.testing.assert_array_equal(nhwc.transpose(NCHW), nchw)
    assert len(np.unique(nchw)) > 20


@pytest.mark.parametrize("residual", [0, 1])
@pytest.mark.parametrize("values", [0, 1])
@pytest.mark.parametrize(
    ("name", "attrs"), [(qop.QCONV2D, CONV), (qop.QCONV2D_TRANSPOSE, TRANSPOSED)]
)
def test_a_fused_epilogue_equals_its_parts(run_graph, name, attrs, residual, values):
    x, weight, bias, *numbers = operands(1)
    rng = np.random.default_rng(2)
    table = rng.integers(0, 256, 256).astype(np.uint8)
    (acc,) = run_graph(emit(name, [weight, bias], attrs), x)
    branch = rng.integers(0, 256, acc.shape).astype(np.uint8)
    second = [branch, np.array([2**17])] if residual else []

    def apart(builder, x):
        acc = builder.emit(emit(name, [weight, bias], attrs)(builder, x))
        q = builder.emit(emit(qop.REQUANTIZE, [*numbers, *second], EPILOGUE)(builder, acc))
        return emit(qop.TABLE, [table], {"id": "t"})(builder, q) if values else q

    fused = emit(
        name,
        [weight, bias, *numbers, *second, *([table] if values else [])],
        attrs | EPILOGUE | {"residual": residual, "values": values},
    )
    (expected,), (result,) = run_graph(apart, x), run_graph(fused, x)
    np.testing.assert_array_equal(result, expected)


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, 255), st.booleans(), st.booleans())
def test_requantize_equals_python_integers(run_graph, seed, zero_point, residual, per_channel):
    rng = np.random.default_rng(seed)
    shape = (2, 3, 2, 2)
    channels = 3 if per_channel else 1
    acc = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    multiplier = rng.integers(0, 2**31, channels)
    shift = rng.integers(1, 63, channels)
    offset = rng.integers(-(2**40), 2**40, channels)
    branch, second = rng.integers(0, 256, shape).astype(np.uint8), rng.integers(0, 2**31, channels)
    attrs = EPILOGUE | {"output_zero_point": zero_point, "acc_zero_point": 3, "id": "r"}
    extra = [branch, second] if residual else []
    (result,) = run_graph(emit(qop.REQUANTIZE, [multiplier, shift, offset, *extra], attrs), acc)
    for index in np.ndindex(*shape):
        c = index[1] if per_channel else 0
        total = int(offset[c]) + (int(acc[index]) - 3) * int(multiplier[c])
        if residual:
            total += (int(branch[index]) - 5) * int(second[c])
        step = (total + 2 ** (int(shift[c]) - 1)) // 2 ** int(shift[c])
        assert int(result[index]) == min(max(step + zero_point, 3), 250)


def test_requantize_takes_full_rank_multipliers(run_graph):
    acc = np.arange(-12, 12, dtype=np.int32).reshape(2, 3, 4)
    multiplier = np.arange(1, 5).reshape(1, 1, 4)
    attrs = EPILOGUE | {"qmin": 0, "output_zero_point": 100, "id": "r"}
    (result,) = run_graph(emit(qop.REQUANTIZE, [multiplier, [1], [0]], attrs), acc)
    np.testing.assert_array_equal(result, ((acc * multiplier + 1) >> 1) + 100)


def test_requantize_slices_the_batch_without_changing_the_result(run_graph, monkeypatch):
    rng = np.random.default_rng(5)
    acc = rng.integers(-(2**20), 2**20, (4, 3, 2)).astype(np.int32)
    branch = rng.integers(0, 256, (4, 3, 2)).astype(np.uint8)
    numbers = [np.array([3, 5, 7]), np.array([15]), np.array([1, 2, 3]), branch, np.array([900])]
    make = emit(qop.REQUANTIZE, numbers, EPILOGUE | {"id": "r"})
    (whole,) = run_graph(make, acc)
    monkeypatch.setattr(calls, "SCRATCH_BYTES", 1)
    np.testing.assert_array_equal(run_graph(make, acc)[0], whole)


def test_a_false_claim_of_32_bits_names_the_layer(run_graph):
    attrs = EPILOGUE | {"compute_dtype": "int32", "output_zero_point": 0, "id": "stem"}
    numbers = [np.array([2**10], np.int32), np.array([20], np.int32), np.array([0], np.int32)]
    fits = np.array([[2**20]], np.int32)
    assert run_graph(emit(qop.REQUANTIZE, numbers, attrs), fits)[0].shape == (1, 1)
    for acc in (2**21, -(2**21) - 1, 2**21 - 1):  # the last one overflows by its rounding only
        with pytest.raises(QuantizationError, match=r"layer stem: .* leaves int32"):
            run_graph(emit(qop.REQUANTIZE, numbers, attrs), np.array([[acc]], np.int32))


def test_quantize_and_dequantize(run_graph):
    x = np.array([[0.05, 0.15, -1e9, 1e9, 0.0]], np.float32)
    attrs = {"scale": 0.1, "zero_point": 4, "qmin": 1, "qmax": 200, "out_dtype": "uint8"}
    (q,) = run_graph(emit(qop.QUANTIZE, [], attrs), x)
    np.testing.assert_array_equal(q, arithmetic.quantize_half_even(x, 0.1, 4, 1, 200, "uint8"))
    scale = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    (y,) = run_graph(emit(qop.DEQUANTIZE, [scale], {"zero_point": 4, "axis": -1}), q)
    np.testing.assert_array_equal(y, (q.astype(np.float32) - 4) * scale)


@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 7)])
def test_qdense(run_graph, shape):
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, shape).astype(np.uint8)
    weight, bias = rng.integers(-127, 128, (4, 7)).astype(np.int8), np.arange(4, dtype=np.int32)
    attrs = {"input_zero_point": 0, "out_dtype": "int32", "id": "fc"}
    (acc,) = run_graph(emit(qop.QDENSE, [weight, bias], attrs), x)
    np.testing.assert_array_equal(acc, x.astype(int) @ weight.T.astype(int) + bias)
    numbers = [np.array([3, 5, 7, 9]), np.array([8]), np.array([0])]
    fused = attrs | EPILOGUE | {"axis": len(shape) - 1}
    (q,) = run_graph(emit(qop.QDENSE, [weight, bias, *numbers], fused), x)
    expected = ((acc.astype(int) * numbers[0] + 128) >> 8) + 9
    np.testing.assert_array_equal(q, np.clip(expected, 3, 250))


def test_qmultiply_broadcasts(run_graph):
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 256, s).astype(np.uint8) for s in ((2, 3, 4, 5), (2, 3, 1, 1)))
    attrs = {"a_zero_point": 128, "b_zero_point": 3, "out_dtype": "int32", "id": "scale"}
    (result,) = run_graph(emit(qop.QMULTIPLY, [], attrs), a, b)
    np.testing.assert_array_equal(result, (a.astype(int) - 128) * (b.astype(int) - 3))


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.booleans())
def test_pool_sum_equals_nested_loops(run_graph, kernel, stride, dilation, pad, nhwc):
    rng = np.random.default_rng(kernel)
    x = rng.integers(0, 256, (2, 2, 7, 6)).astype(np.uint8)
    attrs = {
        "pool_size": [kernel, 2],
        "strides": [stride, 1],
        "dilation": [dilation, 1],
        "padding": [pad, 0, 1, pad],
        "input_zero_point": 9,
        "layout": "NHWC" if nhwc else "NCHW",
        "out_dtype": "int32",
        "id": "pool",
    }
    make = emit(qop.POOL_SUM, [], attrs)
    (result,) = run_graph(make, x.transpose(NHWC) if nhwc else x)
    result = result.transpose(NCHW) if nhwc else result
    for n, c, y, z in np.ndindex(*result.shape):
        total = 0
        for ky in range(kernel):
            for kx in range(2):
                row, column = y * stride + ky * dilation - pad, z + kx
                if 0 <= row < 7 and 0 <= column < 6:
                    total += int(x[n, c, row, column]) - 9
        assert int(result[n, c, y, z]) == total


def test_a_table_refuses_values_that_do_not_index_it(run_graph):
    table = np.arange(256).astype(np.uint8)[::-1]
    q = np.array([[0, 255, 7]], np.int16)
    (result,) = run_graph(emit(qop.TABLE, [table], {"id": "t"}), q)
    np.testing.assert_array_equal(result, [[255, 0, 248]])
    with pytest.raises(QuantizationError, match="layer t: values in"):
        run_graph(emit(qop.TABLE, [table], {"id": "t"}), q - 1)
