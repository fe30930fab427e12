import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tvmquant.run_layout import runs_of
from tvmquant.weight_pairs import (
    MAX_LOSS_DB,
    PAIR_LIMIT,
    bound_pairs,
    bounded_scale,
)

WEIGHTS = array_shapes(min_dims=2, max_dims=2, max_side=9) | array_shapes(
    min_dims=4, max_dims=4, max_side=5
)


def rounded(weight, scale):
    shape = (-1,) + (1,) * (weight.ndim - 1)
    return np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)


def squared_error(weight, scale, integers):
    shape = (-1,) + (1,) * (weight.ndim - 1)
    return float(np.square(integers * scale.reshape(shape) - weight).sum())


@given(arrays(np.int8, WEIGHTS, elements=st.integers(-127, 127)))
def test_bounded_pairs_fit_and_others_stay(weight):
    before = runs_of(weight).astype(int)
    after = runs_of(bound_pairs(weight)).astype(int)
    assert (np.abs(after) <= np.abs(before)).all()
    assert (after * before >= 0).all()
    for i in range(0, before.shape[2] - 1, 2):
        old, new = before[:, :, i : i + 2].sum(axis=2), after[:, :, i : i + 2].sum(axis=2)
        fits = np.abs(old) <= PAIR_LIMIT
        np.testing.assert_array_equal(after[fits, i : i + 2], before[fits, i : i + 2])
        np.testing.assert_array_equal(np.abs(new[~fits]), PAIR_LIMIT)
    np.testing.assert_array_equal(bound_pairs(bound_pairs(weight)), bound_pairs(weight))


# many rows of few weights reach the limit most often, relative to their spread
@pytest.mark.parametrize("shape", [(64, 64, 1, 1), (64, 3, 7, 7), (16, 700), (300, 5, 3, 3)])
def test_scales_of_bounded_pairs_lose_little(shape):
    weight = np.random.default_rng(0).normal(size=shape)
    scale = np.abs(weight).reshape(shape[0], -1).max(axis=1) / 127
    chosen = bounded_scale(weight, scale)
    assert ((scale <= chosen) & (chosen <= 2 * scale)).all()
    free = squared_error(weight, scale, rounded(weight, scale))
    lost = squared_error(weight, chosen, bound_pairs(rounded(weight, chosen)))
    assert free < lost < free * 10 ** (MAX_LOSS_DB / 10)
    # better than leaving the scales as they are, and than halving the resolution
    coarse = scale * np.clip(np.rint(20 * chosen / scale) / 20, 1, 2)
    for other in (scale, 2 * scale, coarse):
        assert lost < squared_error(weight, other, bound_pairs(rounded(weight, other)))


def test_a_layer_that_would_lose_too_much_is_left():
    # exact as it is: whatever bounding takes from it is too much
    weight = np.asarray([[127.0, 127.0, 63.0, -5.0]])
    assert bounded_scale(weight, np.ones(1)) is None
