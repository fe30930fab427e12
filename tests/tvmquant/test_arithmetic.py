from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from tvmquant import arithmetic
from tvmquant.errors import QuantizationError

INT32 = st.integers(-(2**31), 2**31 - 1)
SHIFTS = st.integers(1, 62)
MULTIPLIERS = st.one_of(
    st.sampled_from([0, 1, 1 - 2**31, 2**31 - 1]), st.integers(1 - 2**31, 2**31 - 1)
)
QUANTIZE_LINEAR = ReferenceEvaluator(
    onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        quantize (float[n] x, float scale, uint8 zero_point) => (uint8[n] q) {
            q = QuantizeLinear(x, scale, zero_point)
        }"""
    )
)
DYNAMIC_QUANTIZE_LINEAR = ReferenceEvaluator(
    onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        quantize (float[n] x) => (uint8[n] q, float scale, uint8 zero_point) {
            q, scale, zero_point = DynamicQuantizeLinear(x)
        }"""
    )
)
ACCUMULATORS = st.one_of(st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]), INT32)


def exact_requantize(terms, offset, shift, zero_point, qmin, qmax):
    """Round the exact rational half up, once, in Python integers."""
    total = offset + sum((acc - zero) * multiplier for acc, zero, multiplier in terms)
    value = Fraction(total, 2**shift) + Fraction(1, 2)
    return min(max(value.numerator // value.denominator + zero_point, qmin), qmax)


def requantize(terms, offset, shift, zero_point=0, qmin=-(2**31), qmax=2**31 - 1):
    arrays = [(np.array([acc], np.int32), zero, np.array([m])) for acc, zero, m in terms]
    result = arithmetic.requantize(
        arrays, np.array([offset]), np.array([shift]), zero_point, qmin, qmax, "int64"
    )
    return int(result[0])


@given(ACCUMULATORS, MULTIPLIERS, SHIFTS, st.integers(-255, 255), st.integers(-(2**40), 2**40))
def test_requantize_equals_big_integers(acc, multiplier, shift, zero_point, offset):
    expected = exact_requantize(
        [(acc, 0, multiplier)], offset, shift, zero_point, -(2**31), 2**31 - 1
    )
    assert requantize([(acc, 0, multiplier)], offset, shift, zero_point) == expected


@given(st.integers(-(2**20), 2**20), st.integers(1, 6), st.integers(-9, 9))
def test_ties_go_to_even_where_asked(acc, shift, offset):
    expected = round(Fraction(acc + offset, 2**shift))  # Python rounds half to even
    found = arithmetic.requantize(
        [(np.array([acc]), 0, np.array([1]))], np.array([offset]), np.array([shift]), 3,
        -(2**31), 2**31 - 1, "int64", ties_to_even=True,
    )  # fmt: skip
    assert int(found[0]) == expected + 3


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**30),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**30),
    SHIFTS,
)
def test_requantize_rounds_two_terms_once(acc, m1, residual, zero, m2, shift):
    terms = [(acc, 0, m1), (residual, zero, m2)]
    expected = exact_requantize(terms, 0, shift, 0, -(2**31), 2**31 - 1)
    assert requantize(terms, 0, shift) == expected


def test_two_half_terms_make_one_whole():
    # rounded separately, half up, they would make two
    assert requantize([(1, 0, 1), (1, 0, 1)], 0, 1) == 1


@given(st.integers(-(2**30), 2**30), SHIFTS)
def test_requantize_ties_go_up(whole, shift):
    tie = (2 * whole + 1) << (shift - 1) if shift < 30 else 1 << (shift - 1)
    expected = whole + 1 if shift < 30 else 1
    assert requantize([], tie, shift) == expected
    assert requantize([], tie - 1, shift) == expected - 1


@pytest.mark.parametrize("acc", [-(2**31), 2**31 - 1])
@pytest.mark.parametrize("shift", [1, 31, 62])
@pytest.mark.parametrize("multiplier", [0, 2**31 - 1])
def test_requantize_extremes(acc, shift, multiplier):
    expected = exact_requantize([(acc, 0, multiplier)], 0, shift, 3, 0, 255)
    assert requantize([(acc, 0, multiplier)], 0, shift, 3, 0, 255) == expected


@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=8),
    st.integers(-128, 255),
    st.integers(0, 255),
)
def test_dot_bounds_are_reached_by_extreme_inputs(weight, low, extent):
    w, high = np.array([weight]), low + extent
    least, greatest = arithmetic.dot_bounds(w, low, high)
    assert int(least[0]) == min_dot(w[0], low, high)
    assert int(greatest[0]) == -min_dot(-w[0], low, high)


def min_dot(weight, low, high):
    return int(np.where(weight > 0, low, high) @ weight)


@settings(max_examples=200)
@given(
    st.integers(0, 2**20),
    st.integers(0, 2**14),
    st.integers(0, 2**12),
    st.integers(0, 2**12),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(1, 24),
    st.integers(0, 255),
)
def test_int32_is_only_promised_where_nothing_overflows(
    bound, multiplier, bound2, multiplier2, offset, shift, zero_point
):
    dtype = arithmetic.required_compute_dtype(
        [
            (np.array([bound]), np.array([multiplier])),
            (np.array([bound2]), np.array([multiplier2])),
        ],
        np.array([offset]),
        np.array([shift]),
        zero_point,
    )
    reached = [
        abs(offset + s1 * bound * multiplier + s2 * bound2 * multiplier2 + rounding)
        + (zero_point << shift)
        for s1 in (-1, 0, 1)
        for s2 in (-1, 0, 1)
        for rounding in (0, 1 << (shift - 1))
    ]
    if max(reached) > 2**31 - 1:
        assert dtype == "int64"


@pytest.mark.parametrize(
    ("bound", "multiplier", "shift", "expected"),
    [
        (2**16, 2**14, 22, "int32"),
        (2**16, 2**15, 22, "int64"),  # 2**31 is one too many
        (2**31, 2**31, 22, "int64"),
        (1, 1, 31, "int64"),
    ],
)
def test_required_compute_dtype(bound, multiplier, shift, expected):
    assert (
        arithmetic.required_compute_dtype(
            [(np.array([1, bound]), np.array([1, multiplier]))],
            np.zeros(2, np.int64),
            np.array([1, shift]),
            0,
        )
        == expected
    )


def test_more_than_64_bits_are_refused():
    huge = np.array([2**32]), np.array([2**31])
    with pytest.raises(QuantizationError, match="more than 64 bits"):
        arithmetic.required_compute_dtype([huge], np.array([0]), np.array([1]), 0)


def onnx_quantize(x, scale, zero_point, dtype):
    (q,) = QUANTIZE_LINEAR.run(
        None, {"x": x, "scale": np.float32(scale), "zero_point": np.array(zero_point, dtype)}
    )
    return q


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    st.floats(2.0**-10, 4.0, width=32),
    st.integers(0, 255),
)
def test_quantize_equals_onnx(values, scale, zero_point):
    x = np.array(values, np.float32)
    q = arithmetic.quantize_half_even(x, scale, zero_point, 0, 255, "uint8")
    np.testing.assert_array_equal(q, onnx_quantize(x, scale, zero_point, "uint8"))


@given(st.integers(-200, 200), st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.integers(-128, 127))
def test_quantize_ties_go_to_even(steps, scale, zero_point):
    x = np.array([(steps + 0.5) * scale], np.float32)
    q = arithmetic.quantize_half_even(x, scale, zero_point, -128, 127, "int8")
    even = steps if steps % 2 == 0 else steps + 1
    assert int(q[0]) == min(max(even + zero_point, -128), 127)
    np.testing.assert_array_equal(q, onnx_quantize(x, scale, zero_point, "int8"))


def test_quantize_saturates_and_ignores_the_sign_of_zero():
    x = np.array([np.inf, -np.inf, 3e38, -3e38, -0.0, 0.0], np.float32)
    q = arithmetic.quantize_half_even(x, 1e-6, 100, 0, 255, "uint8")
    np.testing.assert_array_equal(q, [255, 0, 255, 0, 100, 100])


@given(st.lists(st.integers(0, 255), min_size=1), st.floats(2.0**-20, 2.0**20, width=32))
def test_quantize_inverts_dequantize(values, scale):
    q = np.array(values, np.uint8)
    x = arithmetic.dequantize(q, scale, 128)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(arithmetic.quantize_half_even(x, scale, 128, 0, 255, "uint8"), q)


def test_dequantize_per_channel_is_one_float32_product():
    q = np.array([[3, 250], [7, 0]], np.uint8)
    scale = np.array([[0.1], [0.3]])
    expected = (q.astype(np.float32) - 128) * scale.astype(np.float32)
    np.testing.assert_array_equal(arithmetic.dequantize(q, scale, 128), expected)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    st.sampled_from([np.float32(1.0), np.float32(-1.0), np.float32(0.0)]),
)
def test_ranges_found_at_run_time_equal_onnx(values, sign):
    x = np.abs(np.array(values, np.float32)) * sign if sign else np.array(values, np.float32)
    with np.errstate(all="ignore"):
        q, scale, zero_point = DYNAMIC_QUANTIZE_LINEAR.run(None, {"x": x})
    found = arithmetic.dynamic_range(x)
    if x.any() and scale > 0.0:  # of zeros, and of the least numbers, ours is 1
        np.testing.assert_array_equal(found, [scale, zero_point])
        np.testing.assert_array_equal(arithmetic.quantize_by_range(x, found), q)
    else:
        assert found[0] == 1.0


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_any_range_has_a_scale_and_a_zero_point(values):
    scale, zero_point = arithmetic.dynamic_range(np.array(values, np.float32))
    assert 0.0 < scale < np.inf
    assert zero_point in range(256)


def test_real_sums_are_rounded_operation_by_operation():
    sums, scale, bias = np.int32([16777219]), np.float32([0.3]), np.float32([-3e5])
    found = np.float32([0.7, 5])
    factor = np.float32(np.float32(0.7) * np.float32(0.3))
    expected = np.float32(np.float32(np.float32(16777219) * factor) + np.float32(-3e5))
    assert arithmetic.real_sums(sums, found, scale, bias) == expected
