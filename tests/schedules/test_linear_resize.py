"""Linear resize of integers, against numpy."""

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.machine import Machine
from tvmquant.resize import WEIGHT_BITS, coordinates, linear
from tvmquant.schedules import linear_resize


@pytest.mark.parametrize("target", [kt.NATIVE, *kt.EXECUTED])
@pytest.mark.parametrize(
    ("shape", "size", "dtype", "mode"),
    [
        ((2, 7, 9, 64), (14, 18), "uint8", "half_pixel"),
        ((1, 16, 5, 21), (33, 3), "uint8", "align_corners"),
        ((1, 6, 7, 3), (13, 20), "int16", "asymmetric"),
        ((1, 6, 7, 3), (13, 20), "int32", "half_pixel"),
        ((1, 1, 1, 40), (5, 6), "uint8", "pytorch_half_pixel"),
    ],
)
def test_linear_resize(shape, size, dtype, mode, target):
    limits, rng = np.iinfo(dtype), np.random.default_rng(7)
    low, high = (limits.min, limits.max) if dtype != "int32" else (-(2**30), 2**30)
    bits = WEIGHT_BITS[dtype]
    x = rng.integers(low, high + 1, shape).astype(dtype)
    x[..., 0] = high  # the sum must not leave its type
    (r, r1, rw), (c, c1, cw) = rows, columns = [
        linear(coordinates(extent, target_extent, mode), extent, bits)
        for extent, target_extent in zip(shape[1:3], size, strict=True)
    ]
    wide, one = x.astype(object), 1 << bits
    tall = wide[:, r] * (one - rw)[:, None, None] + wide[:, r1] * rw[:, None, None]
    total = tall[:, :, c] * (one - cw)[:, None] + tall[:, :, c1] * cw[:, None]
    expected = ((total + one * one // 2) >> 2 * bits).astype(dtype)

    spec = linear_resize.LinearResizeSpec(shape, size, dtype)
    taps = [np.stack(taps, 1).astype(np.int32) for taps in (rows, columns)]
    target = kt.make_target(target)
    found = kt.run(linear_resize.kernel(spec, Machine.of(target, 2)), target, [x, *taps])
    assert found.shape == linear_resize.output_shape(spec)
    np.testing.assert_array_equal(found, expected)
