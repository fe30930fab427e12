"""Weights that are sums of two or three signs are taken apart, others are not."""

import numpy as np
import pytest

from tvmquant.passes.sums_of_signs import sums_of_signs

RNG = np.random.default_rng(0)
SHAPE = (6, 16, 3, 3)


def sum_of(magnitudes):
    """Return a weight that is a sum of random signs, times magnitudes (M, O)."""
    scales = np.asarray(magnitudes)
    signs = RNG.choice([-1, 1], (len(scales), *SHAPE))
    return np.einsum("mo,mocyx->ocyx", scales, signs).astype(np.float32)


@pytest.mark.parametrize(
    "magnitudes",
    [
        RNG.uniform(0.1, 1.0, (2, 6)),
        RNG.uniform(0.1, 1.0, (3, 6)),
        np.tile([[1.0], [0.5], [0.25]], 6),
        np.tile([[1.0], [0.9], [0.8]], 6),  # the first is less than the others together
        [[1.0] * 6, [0.5] * 3 + [0.0] * 3],  # one channel has one
        [[1.0] * 6, [0.5] * 6, [0.25] * 5 + [0.0]],
    ],
)
def test_a_sum_is_taken_apart(magnitudes):
    weight = sum_of(magnitudes)
    signs, scales = sums_of_signs(weight)
    assert len(signs) == len(magnitudes)
    assert np.all(np.abs(signs) == 1)
    assert np.all(scales >= 0.0)
    np.testing.assert_allclose(np.einsum("mo,mocyx->ocyx", scales, signs), weight, atol=1e-6)


@pytest.mark.parametrize(
    "weight",
    [
        RNG.normal(size=SHAPE),
        sum_of(RNG.uniform(0.1, 1.0, (1, 6))),  # one sign is known elsewhere
        sum_of(RNG.uniform(0.1, 1.0, (4, 6))),
        RNG.choice([-4.0, -2.0, -1.5, -1.0, 1.0, 1.5, 2.0, 4.0], SHAPE),  # four of no such sum
        sum_of(RNG.uniform(0.1, 1.0, (2, 6)))[:, :1, :2, :2],  # too few to tell
        np.full(SHAPE, np.nan),
        np.zeros(SHAPE),
    ],
)
def test_other_weights(weight):
    assert sums_of_signs(weight) is None
