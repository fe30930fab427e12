import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmquant.arithmetic import INT32_MAX, MAX_NARROW_SHIFT
from tvmquant.errors import QuantizationError
from tvmquant.passes.multipliers import (
    MAX_MULTIPLIER_ERROR,
    MAX_SLOPE_ERROR,
    NEGLIGIBLE_STEPS,
    Multipliers,
    choose_multipliers,
)

ratios = st.lists(st.floats(1e-9, 10.0), min_size=1, max_size=4).map(np.array)
bounds = st.integers(1, 2**30)
zero_points = st.integers(0, 255)


def choose(ratios, bounds, zero_point=0, extra=0.0, *, snap_first=False, **slopes):
    arrays = [np.atleast_1d(np.asarray(b)) for b in bounds]
    return choose_multipliers(
        ratios, arrays, zero_point, extra, snap_first=snap_first, name="conv_1", **slopes
    )


def largest_sum(chosen, bounds, zero_point, extra=0.0):
    """Bound every partial sum of equation (3), as Python integers."""
    worst = 0
    for channel, shift in enumerate(chosen.shift):
        total = math.ceil(extra * 2 ** int(shift)) + (1 << int(shift - 1))
        total += abs(zero_point) << int(shift)
        for values, bound in zip(chosen.values, bounds, strict=True):
            total += abs(int(np.broadcast_to(values, chosen.shift.shape)[channel])) * bound
        worst = max(worst, total)
    return worst


@given(ratios, bounds, zero_points, st.floats(0, 1000), st.booleans())
def test_the_sum_fits_the_type_that_was_chosen(ratio, bound, zero_point, extra, snap):
    chosen = choose([ratio], [bound], zero_point, extra, snap_first=snap)
    limit = INT32_MAX if chosen.compute_dtype == "int32" else 2**63 - 1
    assert largest_sum(chosen, [bound], zero_point, extra) <= limit
    assert (chosen.shift >= 1).all()


@given(ratios, bounds, ratios, st.integers(1, 255))
def test_the_result_moves_by_a_small_part_of_a_step(first, bound, second, residual_bound):
    second = np.resize(second, first.shape)
    chosen = choose([first, second], [bound, residual_bound])
    widest = np.maximum(first, second) * (bound + residual_bound)
    error = sum(
        np.abs(np.ldexp(v.astype(np.float64), -chosen.shift) - r) * b
        for v, r, b in zip(chosen.values, (first, second), (bound, residual_bound), strict=True)
    )
    # Multipliers of 30 bits are as exact as it gets; only far beyond the clip is that coarser.
    assert (error <= np.maximum(MAX_MULTIPLIER_ERROR, widest * 2.0**-30)).all()


@given(ratios, bounds)
def test_a_snapped_multiplier_is_at_most_a_sixteenth_above(ratio, bound):
    chosen = choose([ratio], [bound], snap_first=True)
    if chosen.compute_dtype == "int32":
        matters = ratio * bound > NEGLIGIBLE_STEPS
        value = np.ldexp(chosen.values[0].astype(np.float64), -chosen.shift)
        assert (value >= ratio).all()
        assert (value <= ratio * (1 + 1 / 16))[matters].all()
        assert (chosen.shift <= MAX_NARROW_SHIFT).all()


def test_a_typical_layer_needs_32_bits():
    # 3x3x64 weights of 8 bits, an accumulator of 18 bits
    chosen = choose([np.array([1e-3, 2e-3])], [2**18], 0, snap_first=True)
    assert chosen.compute_dtype == "int32"
    chosen = choose(
        [np.array([1e-3, 2e-3])], [2**18], 23, snap_first=True, slopes=np.array([0.1]), reach=23
    )
    assert chosen.compute_dtype == "int32"


@given(ratios, bounds, st.floats(-16.0, 16.0), st.integers(1, 65535))
def test_a_slope_moves_what_is_not_clipped_by_a_part_of_a_step(ratio, bound, slope, reach):
    slopes = np.array([slope])
    chosen = choose([ratio], [bound], snap_first=True, slopes=slopes, reach=reach)
    first, second = (np.ldexp(v.astype(np.float64), -chosen.shift) for v in chosen.values)
    unclipped = np.minimum(bound, reach / np.maximum(np.abs(second), 1e-300))
    moved = np.abs(second - first * slopes) * unclipped
    assert (moved <= np.maximum(MAX_SLOPE_ERROR, reach * 2.0**-13)).all()
    greatest = [np.maximum(*np.abs(chosen.values))]
    fits = largest_sum(Multipliers(tuple(greatest), chosen.shift, ""), [bound], 0)
    assert fits <= (INT32_MAX if chosen.compute_dtype == "int32" else 2**63 - 1)


def test_a_wide_accumulator_needs_64_bits_when_its_scale_is_fixed():
    assert choose([np.array([1e-4])], [2**24]).compute_dtype == "int64"


def test_a_zero_ratio_gives_a_zero_multiplier():
    chosen = choose([np.array([0.0, 0.5])], [100])
    assert chosen.values[0][0] == 0
    assert chosen.values[0][1] > 0


def test_negative_ratios_are_rounded_away_from_zero_when_snapped():
    chosen = choose([np.array([-0.3, 0.3])], [2**20], snap_first=True)
    assert chosen.values[0][0] == -chosen.values[0][1]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_ratios_must_be_finite(bad):
    with pytest.raises(QuantizationError, match=r"conv_1.*not finite"):
        choose([np.array([bad])], [1])


def test_what_needs_more_than_64_bits_names_the_layer():
    with pytest.raises(QuantizationError, match="conv_1"):
        choose([np.array([1.0])], [2**30], extra=2.0**62)


@given(
    ratios, st.integers(-(2**24), 0), st.integers(0, 2**24), st.floats(-4096.0, 4096.0), zero_points
)
def test_partial_sums_fit_whatever_the_sign_of_the_bias(ratio, low, high, bias, zero_point):
    ends = np.atleast_1d(low), np.atleast_1d(high)
    bound = np.maximum(*np.abs(ends))
    chosen = choose_multipliers(
        [ratio], [bound], zero_point, np.full(1, bias), name="conv_1", span=ends
    )
    limit = INT32_MAX if chosen.compute_dtype == "int32" else 2**63 - 1
    for value, shift in zip(chosen.values[0], chosen.shift, strict=True):
        offset = round(bias * 2 ** int(shift))
        for end in (low, high):
            product = int(value) * end
            steps = [product, product + offset, product + offset + (1 << int(shift - 1))]
            steps.append(steps[-1] + (zero_point << int(shift)))
            assert max(map(abs, steps)) <= limit


def test_a_ratio_is_exact_as_far_as_scales_are_stored():
    # of an output of 16 bits: far beyond its clip a relative error of float32 is many steps
    dyadic = np.array([1234 * 2.0**-10])
    stored = (dyadic * (1 + 2.0**-24)).astype(np.float64)
    for ratio in (dyadic, stored):
        chosen = choose([ratio], [2**19])
        assert chosen.compute_dtype == "int32"
        assert np.ldexp(chosen.values[0].astype(float), -chosen.shift) == dyadic
    assert choose([dyadic * (1 + 2.0**-12)], [2**19]).compute_dtype == "int64"
