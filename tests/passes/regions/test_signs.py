"""Thresholds give the sign that exact arithmetic gives, for every accumulator."""

from fractions import Fraction

import numpy as np
import pytest

from tvmquant.errors import QuantizationError
from tvmquant.passes.accumulator import Accumulator, Term
from tvmquant.passes.regions.signs import by_direction, sign_multipliers

RNG = np.random.default_rng(0)
BOUND = 40
ACCUMULATORS = np.arange(-BOUND, BOUND + 1)


def region(scale, bias, zero_point=0, **limits):
    scale, bias = (np.atleast_1d(np.asarray(a, np.float64)) for a in (scale, bias))
    term = Term(scale, np.full(scale.shape, BOUND), zero_point)
    return Accumulator((term,), bias, **limits)


def levels(found, *accumulators):
    chosen, offset = found
    terms = [
        ((acc - zero)[:, None], multiplier)
        for (acc, zero), multiplier in zip(accumulators, chosen.values, strict=True)
    ]
    total = offset + sum(acc * multiplier for acc, multiplier in terms)
    if chosen.compute_dtype == "int32":
        assert np.abs(total).max() < 2**31 - 1
    return np.clip(((total + 1) >> chosen.shift) + 128, 127, 129)


def exact(scale, bias, accumulators, strict):
    values = [
        [Fraction(s) * int(acc) + Fraction(b) for s, b in zip(scale, bias, strict=True)]
        for acc in accumulators
    ]
    return np.asarray(
        [[129 if (v > 0 if strict else v >= 0) else 127 for v in row] for row in values]
    )


@pytest.mark.parametrize("strict", [False, True])
def test_one_tensor(strict):
    scale = RNG.normal(size=200) * 10.0 ** RNG.integers(-6, 3, 200)
    bias = -scale * RNG.integers(-50, 51, 200)  # crossings on integers, and beyond what comes
    bias[::3] += scale[::3] * 1e-13  # a hair beside them
    scale[::17] = 0.0
    bias[::34] = 0.0
    found = sign_multipliers(region(scale, bias), "layer", strict=strict)
    np.testing.assert_array_equal(
        levels(found, (ACCUMULATORS, 0)), exact(scale, bias, ACCUMULATORS, strict)
    )
    assert found[0].compute_dtype == "int32"


def test_a_zero_point():
    scale, bias = RNG.normal(size=50), RNG.normal(size=50)
    found = sign_multipliers(region(scale, bias, zero_point=7), "layer", strict=False)
    reached = ACCUMULATORS[7:]
    expected = exact(scale, bias, reached - 7, False)
    np.testing.assert_array_equal(levels(found, (reached, 7)), expected)


@pytest.mark.parametrize(("low", "level"), [(0.0, None), (0.5, 129), (0.7, 129)])
def test_levels_whose_middle_is_not_zero(low, level):
    scale, bias = RNG.normal(size=50), RNG.normal(size=50)
    made = region(scale, bias, low=low)
    found = levels(sign_multipliers(made, "layer", strict=False, middle=0.5), (ACCUMULATORS, 0))
    expected = exact(scale, bias - 0.5, ACCUMULATORS, False) if level is None else level
    np.testing.assert_array_equal(found, expected)


def test_long_sums_take_64_bits():
    term = Term(np.ones(1), np.asarray([2**30]))
    found = sign_multipliers(Accumulator((term,), np.zeros(1)), "layer", strict=False)
    assert found[0].compute_dtype == "int64"


@pytest.mark.parametrize("strict", [False, True])
def test_two_tensors(strict):
    scales = RNG.normal(size=(2, 64))
    scales[1, ::4] = scales[0, ::4]  # sums of exactly 0
    bias = np.where(np.arange(64) % 8 == 0, 0.0, RNG.normal(size=64))
    terms = tuple(Term(s, np.full(64, BOUND)) for s in scales)
    found = sign_multipliers(Accumulator(terms, bias), "layer", strict=strict)
    other = RNG.permutation(ACCUMULATORS)
    total = scales[0] * ACCUMULATORS[:, None] + scales[1] * other[:, None] + bias
    above = total > 0 if strict else total >= 0
    found = levels(found, (ACCUMULATORS, 0), (other, 0))
    clear = (np.abs(total) > 1e-5) | (total == 0.0)
    np.testing.assert_array_equal(found[clear], np.where(above, 129, 127)[clear])


@pytest.mark.parametrize(
    ("limits", "strict", "level"),
    [
        ({"low": 0.0}, False, 129), ({"low": 0.5}, True, 129), ({"high": -0.5}, False, 127),
        ({"high": 0.0}, True, 127), ({"slopes": np.zeros(4)}, False, 129),
        ({"slopes": np.full(4, -0.1)}, False, 129),
    ],
)  # fmt: skip
def test_what_is_clipped_to_one_side_is_constant(limits, strict, level):
    made = region(RNG.normal(size=4), RNG.normal(size=4), **limits)
    found = levels(sign_multipliers(made, "layer", strict=strict), (ACCUMULATORS, 0))
    assert np.all(found == level)


def test_slopes_keep_signs():
    scale, bias = RNG.normal(size=9), RNG.normal(size=9)
    made = region(scale, bias, slopes=np.full(9, 0.2))
    found = levels(sign_multipliers(made, "layer", strict=False), (ACCUMULATORS, 0))
    np.testing.assert_array_equal(found, exact(scale, bias, ACCUMULATORS, False))


@pytest.mark.parametrize("strict", [False, True])
def test_a_shift_behind_slopes(strict):
    scale, bias, shift = RNG.normal(size=(3, 90))
    slopes = np.where(np.arange(90) % 5 == 0, 0.0, RNG.uniform(0.1, 2.0, 90))
    made = region(scale, bias, slopes=slopes, shift=shift)
    found = levels(sign_multipliers(made, "layer", strict=strict), (ACCUMULATORS, 0))
    total = scale * ACCUMULATORS[:, None] + bias
    value = np.where(total < 0.0, total * slopes, total) + shift
    above = value > 0.0 if strict else value >= 0.0
    clear = np.abs(value) > 1e-9
    np.testing.assert_array_equal(found[clear], np.where(above, 129, 127)[clear])


@pytest.mark.parametrize("limits", [{}, {"low": -1.0, "high": 1.0}])
@pytest.mark.parametrize("strict", [False, True])
def test_negative_slopes_cross_thresholds_twice(strict, limits):
    scale, bias, shift = RNG.normal(size=(3, 90))
    slopes = RNG.uniform(-2.0, 2.0, 90)
    slopes[0] = 0.5  # of the first channel the falling side has none
    made = region(scale, bias, slopes=slopes, shift=shift, **limits)
    sides = by_direction(made, 0.1, strict=strict)
    found = np.maximum(
        *(
            levels(sign_multipliers(side, "layer", strict=strict, middle=0.1), (ACCUMULATORS, 0))
            for side in sides
        )
    )
    total = scale * ACCUMULATORS[:, None] + bias
    value = np.where(total < 0.0, total * slopes, total) + shift - 0.1
    clear = np.abs(value) > 1e-9
    np.testing.assert_array_equal(found[clear], np.where(value > 0.0, 129, 127)[clear])
    assert by_direction(region(scale, bias, slopes=np.abs(slopes)), 0.0, strict=strict) is None


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (region(np.nan, 0.0), "'layer': a scale or bias before its sign is not finite"),
    ],
)
def test_errors(made, message):
    with pytest.raises(QuantizationError, match=message):
        sign_multipliers(made, "layer", strict=True)
