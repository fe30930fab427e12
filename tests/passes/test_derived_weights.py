"""Ratios of wider and narrower weights: found wherever there are some, and exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmquant.arithmetic import requantize
from tvmquant.formats import Uniform
from tvmquant.passes.derived_weights import derivation_of


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 8),
    st.lists(st.tuples(st.integers(1, 255), st.integers(1, 15)), min_size=3, max_size=3),
    st.lists(st.sampled_from([-1, 1]), min_size=6, max_size=6),
)
def test_every_requantization_is_found(seed, bits, ratios, signs):
    held = Uniform(bits, signed=True)
    wide = np.random.default_rng(seed).integers(-127, 128, (3, 40))
    multiplier, shift = (np.asarray(column)[:, None] for column in zip(*ratios, strict=True))
    before, after = np.asarray(signs).reshape(2, 3, 1)
    narrow = after * requantize([(wide, 0, multiplier)], 0, shift, 0, held.qmin, held.qmax, "int32")
    found = derivation_of(wide * before, narrow, held)
    assert found is not None
    np.testing.assert_array_equal(found.derived(wide * before), narrow)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [([1, 2, 3], [1, 3, 2]), ([0, 5, 5], [1, 2, 2]), ([64, 64, 3], [4, 5, 0])],
    ids=["not monotonous", "of nothing", "two of one"],
)
def test_what_follows_from_no_ratio(wide, narrow):
    assert derivation_of(np.asarray([wide]), np.asarray([narrow]), Uniform(4, signed=True)) is None
