"""The kernel of group normalization equals float64 for every size, tail and group."""

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.machine import Machine
from tvmquant.schedules import group_norm_f32

TARGETS = [kt.NATIVE, *kt.EXECUTED]
# shapes and groups: many vectors, tails only, one element, whole vectors without a tail
SIZES = [((2, 6, 9, 13), 3), ((1, 8, 3), 4), ((1, 4, 1, 1), 4), ((1, 2, 16, 64), 1), ((3, 5, 7), 5)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("shape", "groups"), SIZES)
def test_equals_the_definition(shape, groups, target):
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal(shape) + 50).astype(np.float32)
    gamma, beta = rng.standard_normal((2, shape[1])).astype(np.float32)
    spec = group_norm_f32.GroupNormSpec(shape, groups, 1e-3)
    chosen = kt.make_target(target)
    rows = x.reshape(spec.rows, spec.channels * spec.positions)
    found = kt.run(group_norm_f32.kernel(spec, Machine.of(chosen, 2)), chosen, [rows, gamma, beta])
    groups_of = rows.astype(np.float64)
    centered = groups_of - groups_of.mean(axis=1, keepdims=True)
    normal = centered / np.sqrt(groups_of.var(axis=1, keepdims=True) + 1e-3)
    by_channel = (-1, *(1,) * (len(shape) - 2))
    expected = normal.reshape(shape) * gamma.reshape(by_channel) + beta.reshape(by_channel)
    np.testing.assert_allclose(found.reshape(shape), expected, rtol=2e-4, atol=2e-5)
