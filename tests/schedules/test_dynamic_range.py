"""Ranges found at run time against `tvmquant.arithmetic`."""

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.arithmetic import dynamic_range
from tvmquant.machine import Machine
from tvmquant.schedules.dynamic_range import RangeSpec, default_tiling, kernel

# one element, fewer than a vector, a last vector that overlaps, and enough for two threads
SHAPES = [(1,), (3,), (2, 7, 1, 1), (5, 129), (1, 64, 33, 33)]


def cases(shape):
    """Yield tensors of either sign, of one, of none, too wide and too narrow, and with NaN."""
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    yield from (x, np.abs(x), -np.abs(x), 0 * x, np.float32(1e-44) * x, np.float32(5e37) * x)
    for value in (np.nan, np.inf, -np.inf):
        special = x.copy()
        special.flat[-1] = value
        yield special
    yield np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("target", [kt.NATIVE, *kt.EXECUTED])
@pytest.mark.parametrize("shape", SHAPES)
def test_range_equals_definition(shape, target):
    target = kt.make_target(target)
    func = kernel(RangeSpec(shape), Machine.of(target, 2))
    built = kt.build(func, target)["main"]
    for x in cases(shape):
        arguments = kt.device_arguments(func, [x])
        built(*arguments)
        np.testing.assert_array_equal(arguments[-1].numpy(), dynamic_range(x))


@pytest.mark.parametrize("target", kt.COMPILED)
def test_other_processors_compile_it(target):
    kt.build(kernel(RangeSpec((3, 129)), Machine.of(target, 2)), kt.make_target(target))


def test_threads_share_what_pays_for_waking_them():
    chunks = [default_tiling(RangeSpec((n,)), Machine.of("haswell", 2)).chunks for n in (99, 99999)]
    assert chunks == [1, 2]
