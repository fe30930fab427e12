"""Kernels that move integers, against numpy."""

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.machine import Machine
from tvmquant.schedules import structural

TARGETS = [kt.NATIVE, *kt.EXECUTED]


def numbers(dtype, shape):
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(31)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def check(spec, inputs, expected, target):
    target = kt.make_target(target)
    found = kt.run(structural.kernel(spec, Machine.of(target, 2)), target, inputs)
    assert found.shape == structural.output_shape(spec)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        (((1, 28, 28, 64), (1, 28, 28, 32)), 3),
        (((2, 5, 5, 37), (2, 5, 5, 3), (2, 5, 5, 1)), 3),
        (((1, 40, 30, 30), (1, 7, 30, 30)), 1),
        (((1, 64), (3, 64)), 0),
    ],
)
def test_concat(shapes, axis, dtype, target):
    inputs = [numbers(dtype, shape) for shape in shapes]
    spec = structural.ConcatSpec(shapes, axis, dtype)
    check(spec, inputs, np.concatenate(inputs, axis), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("channels", "dtype"), [(64, "uint8"), (5, "int16")])
def test_nearest_resize(channels, dtype, target):
    x = numbers(dtype, (2, 7, 9, channels))
    rows, columns = np.arange(23) * 7 // 23, np.arange(4) * 9 // 4
    spec = structural.ResizeSpec(x.shape, (23, 4), dtype)
    inputs = [x, rows.astype(np.int32), columns.astype(np.int32)]
    check(spec, inputs, x[:, rows][:, :, columns], target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("channels", "dtype"), [(32, "uint8"), (5, "int16")])
def test_pad(channels, dtype, target):
    x = numbers(dtype, (2, 5, 6, channels))
    before, after = (0, 1, 2, 3), (0, 2, 0, 1)
    spec = structural.PadSpec(x.shape, before, after, 130, dtype)
    expected = np.pad(x, list(zip(before, after, strict=True)), constant_values=130)
    check(spec, [x], expected, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("mode", "expected"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")]
)
def test_pad_with_own_values(mode, expected, target):
    x = numbers("uint8", (2, 5, 6, 20))
    before, after = (0, 4, 1, 3), (0, 2, 5, 0)
    spec = structural.PadSpec(x.shape, before, after, 0, "uint8", mode)
    check(spec, [x], np.pad(x, list(zip(before, after, strict=True)), expected), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_slice(dtype, target):
    x = numbers(dtype, (2, 11, 12, 48))
    spec = structural.SliceSpec(x.shape, (1, 2, 11, 16), (1, 3, -2, 1), (1, 3, 5, 32), dtype)
    check(spec, [x], x[1:2, 2:11:3, 11:2:-2, 16:48], target)
    spec = structural.SliceSpec(x.shape, (0, 0, 0, 1), (1, 1, 1, 3), (2, 11, 12, 15), dtype)
    check(spec, [x], x[..., 1:46:3], target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 7, 9, 37), (0, 3, 1, 2)),
        ((1, 3, 30, 34), (0, 2, 3, 1)),
        ((1, 30, 30, 4, 32), (0, 1, 2, 4, 3)),  # channel shuffle
        ((2, 5, 6, 16), (2, 0, 1, 3)),
    ],
)
def test_permute(shape, axes, dtype, target):
    x = numbers(dtype, shape)
    check(structural.PermuteSpec(shape, axes, dtype), [x], x.transpose(axes), target)


@pytest.mark.parametrize("target", kt.COMPILED, ids=str)
def test_compiles_for_other_targets(target):
    target = kt.make_target(target)
    shape = (1, 9, 9, 40)
    for spec in [
        structural.ConcatSpec((shape, shape), 3),
        structural.PermuteSpec(shape, (0, 3, 1, 2)),
        structural.PadSpec(shape, (0, 1, 1, 0), (0, 1, 1, 0), 0),
    ]:
        kt.build(structural.kernel(spec, Machine.of(target, 4)), target)
