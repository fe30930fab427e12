"""Pooling kernels against numpy."""

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.machine import Machine
from tvmquant.schedules import pool
from tvmquant.schedules.epilogue import Epilogue

TARGETS = [kt.NATIVE, *kt.EXECUTED]
# (shape, pool_size, strides, padding, dilation, out_size)
WINDOWS = [
    ((2, 9, 11, 19), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (5, 6)),
    ((1, 8, 8, 64), (3, 3), (2, 2), (0, 0, 0, 0), (1, 1), (4, 4)),  # ceil mode
    ((1, 7, 6, 3), (2, 3), (1, 2), (0, 1, 1, 2), (1, 1), (7, 4)),
    ((1, 9, 9, 33), (3, 2), (1, 1), (2, 1, 2, 1), (2, 3), (9, 8)),  # dilated and padded
    ((2, 7, 7, 100), (7, 7), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1)),  # global
    ((1, 30, 30, 16), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), (15, 15)),
]


def windows(x, spec, fill):
    """Stack the taps of every window along a new first axis, 64-bit integers."""
    n, h, w, c = x.shape
    top, left = spec.padding[:2]
    padded = np.full((n, h + 40, w + 40, c), fill, np.int64)
    padded[:, top : top + h, left : left + w] = x
    taps = []
    for i in range(spec.pool_size[0]):
        for j in range(spec.pool_size[1]):
            rows = i * spec.dilation[0] + np.arange(spec.out_size[0]) * spec.strides[0]
            columns = j * spec.dilation[1] + np.arange(spec.out_size[1]) * spec.strides[1]
            taps.append(padded[:, rows][:, :, columns])
    return np.stack(taps)


def check(spec, inputs, expected, target):
    target = kt.make_target(target)
    found = kt.run(pool.kernel(spec, Machine.of(target, 2)), target, inputs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("window", WINDOWS)
def test_maximum(window, dtype, target):
    rng = np.random.default_rng(21)
    limits = np.iinfo(dtype)
    # low values, so that a padding that wins is seen
    x = rng.integers(limits.min, limits.min + 9, window[0]).astype(dtype)
    spec = pool.MaxPoolSpec(*window, dtype=dtype)
    check(spec, [x], windows(x, spec, limits.min).max(axis=0), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("window", WINDOWS)
def test_sum(window, target):
    x = np.random.default_rng(22).integers(0, 256, window[0]).astype(np.uint8)
    spec = pool.SumPoolSpec(*window, zero_point=130)
    check(spec, [x], windows(x.astype(np.int64) - 130, spec, 0).sum(axis=0), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("compute_dtype", ["int32", "int64"])
@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("window", WINDOWS[:1] + WINDOWS[4:5])
def test_average(window, positional, compute_dtype, target):
    rng = np.random.default_rng(23)
    x = rng.integers(0, 256, window[0]).astype(np.uint8)
    residual = compute_dtype == "int64"
    epilogue = Epilogue(compute_dtype, "uint8", 0, 255, residual, table=positional)
    shape = (1, *window[5], 1) if positional else (1,)
    spec = pool.SumPoolSpec(
        *window, zero_point=3, epilogue=epilogue, parameter_shape=shape, residual_dtype="int16"
    )
    total = windows(x.astype(np.int64) - 3, spec, 0).sum(axis=0)
    parameters = kt.epilogue_inputs(rng, epilogue, int(np.prod(shape)), int(total.max()))
    parameters = {k: v.reshape(shape) for k, v in parameters.items()}
    table = [rng.permutation(256).astype(np.uint8)] if positional else []
    second = []
    if residual:
        values = rng.integers(-total.max(), total.max(), total.shape).astype(np.int16)
        second = [values, parameters["multiplier"][..., ::-1] >> 1]
    expected = kt.apply_epilogue(
        epilogue, total, **parameters, residual=second or None, table=table[0] if table else None
    )
    assert len(np.unique(expected)) > 4
    check(spec, [x, *parameters.values(), *second, *table], expected, target)


@pytest.mark.parametrize("target", kt.COMPILED, ids=str)
def test_compiles_for_other_targets(target):
    target = kt.make_target(target)
    epilogue = Epilogue("int64", "uint8", 0, 255)
    for spec in [
        pool.MaxPoolSpec(*WINDOWS[0]),
        pool.SumPoolSpec(*WINDOWS[0], epilogue=epilogue),
    ]:
        kt.build(pool.kernel(spec, Machine.of(target, 4)), target)
