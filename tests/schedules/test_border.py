"""Float borders against `tvmquant.arithmetic`."""

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.arithmetic import dequantize, quantize_half_even
from tvmquant.machine import Machine
from tvmquant.schedules import border

TARGETS = [kt.NATIVE, *kt.EXECUTED]
# few and many channels, pixels in a row and alone
SHAPES = [(2, 1, 9, 7), (2, 19, 5, 6), (1, 64, 28, 28), (2, 7, 1, 1)]
# images, most with a last vector that overlaps the one before it, one narrower than a vector
INTERLEAVED = [(1, 3, 20, 37), (2, 3, 5, 48), (1, 4, 6, 33), (1, 2, 7, 5)]


def every_tie(shape, scale):
    """Values whose quotients with the scale are often halves, and extremes."""
    rng = np.random.default_rng(3)
    x = (rng.integers(-600, 600, shape) * np.float32(0.5) * np.float32(scale)).astype(np.float32)
    x.flat[:6] = [np.inf, -np.inf, 3e38, -3e38, 1e-40, -0.0]
    return x


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("to_nhwc", [True, False])
@pytest.mark.parametrize("shape", SHAPES + INTERLEAVED)
def test_quantize_equals_definition(shape, to_nhwc, target):
    target = kt.make_target(target)
    for scale, zero_point, qmin, qmax, dtype in [
        (0.25, 0, 0, 255, "uint8"),
        (0.0371, 131, 3, 250, "uint8"),
        (0.003, -7, -32768, 32767, "int16"),
    ]:
        x = every_tie(shape, scale)
        spec = border.QuantizeSpec(shape, scale, zero_point, qmin, qmax, dtype, to_nhwc)
        expected = quantize_half_even(x, scale, zero_point, qmin, qmax, dtype)
        if to_nhwc:
            expected = expected.transpose(0, 2, 3, 1)
        found = kt.run(border.kernel(spec, Machine.of(target, 2)), target, [x])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES + INTERLEAVED)
def test_images_of_any_width_are_interleaved(shape):
    spec = border.QuantizeSpec(shape, 0.5, 0, 0, 255, to_nhwc=True)
    tiling = border.default_tiling(spec, Machine.of("haswell", 1))
    assert (tiling.order == "interleaved") == (shape in INTERLEAVED)


@pytest.mark.parametrize("shape", [(2, 1, 9, 7), (2, 7, 1, 1)])
def test_extents_of_one_change_places_for_nothing(shape):
    target, (n, c, h, w) = kt.make_target("haswell"), shape
    quantize = border.QuantizeSpec(shape, 0.5, 0, 0, 255, to_nhwc=True)
    dequantize = border.DequantizeSpec((n, h, w, c), "uint8", 0, to_nchw=True)
    assert [
        border.default_tiling(s, Machine.of(target, 1)).order for s in (quantize, dequantize)
    ] == [
        "flat",
        "flat",
    ]


def test_nan_becomes_qmin():
    spec = border.QuantizeSpec((33,), 0.5, 10, 4, 255)
    target = kt.make_target(kt.NATIVE)
    x = np.full(33, np.nan, np.float32)
    assert set(kt.run(border.kernel(spec, Machine.of(target, 1)), target, [x])) == {4}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("to_nchw", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_dequantize_equals_definition(dtype, to_nchw, per_channel, target):
    target = kt.make_target(target)
    rng = np.random.default_rng(5)
    limits = np.iinfo(dtype)
    for shape in [(2, 5, 7, 3), (1, 28, 28, 64)]:
        q = rng.integers(limits.min // 2, limits.max, shape).astype(dtype)
        moved = q.transpose(0, 3, 1, 2) if to_nchw else q
        for scale_shape in [(1, moved.shape[1], 1, 1), (1, 1, 1, moved.shape[3])]:
            scale = rng.random(scale_shape if per_channel else 1).astype(np.float32)
            spec = border.DequantizeSpec(shape, dtype, 3, scale.shape, to_nchw)
            found = kt.run(border.kernel(spec, Machine.of(target, 2)), target, [q, scale])
            np.testing.assert_array_equal(found, dequantize(moved, scale, 3))


@pytest.mark.parametrize("target", kt.COMPILED, ids=str)
def test_compiles_for_other_targets(target):
    target = kt.make_target(target)
    kt.build(
        border.kernel(border.QuantizeSpec((1, 3, 8, 8), 0.1, 0, 0, 255), Machine.of(target, 4)),
        target,
    )
    kt.build(
        border.kernel(border.DequantizeSpec((1, 10), "uint8", 0, (1, 10)), Machine.of(target, 4)),
        target,
    )
