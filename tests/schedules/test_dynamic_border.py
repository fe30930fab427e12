"""Borders by a range found at run time against `tvmquant.arithmetic`."""

import math

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.arithmetic import dynamic_range, quantize_by_range, real_sums
from tvmquant.machine import Machine
from tvmquant.schedules.dynamic_border import (
    DequantizeSpec,
    QuantizeSpec,
    dequantize_kernel,
    quantize_kernel,
)

TARGETS = [kt.NATIVE, *kt.EXECUTED]
NONE = (0, 0, 0, 0)
# shape, padding and whether channels come last; images are interleaved
QUANTIZED = [
    ((1,), NONE, False),
    ((5, 129), NONE, False),
    ((1, 64, 33, 33), NONE, False),
    ((2, 7, 5, 19), (1, 2, 0, 3), False),
    ((2, 3, 9, 37), (1, 1, 1, 1), True),
    ((1, 4, 6, 33), NONE, True),
    ((2, 19, 5, 6), (1, 0, 2, 1), True),
    ((2, 1, 5, 6), (1, 0, 2, 1), True),
    ((1, 3, 5, 1), (0, 3, 0, 0), True),
]
# shape and those of weight_sums, scale and bias, and of what zero points of weights need
REAL = [
    ((3, 7), [(7,), (7,), (7,)]),
    ((1, 9, 9, 33), [(33,), (33,), (1,)]),
    ((2, 4, 4, 5), [(1, 4, 4, 5), (5,), (5,)]),
    ((1, 4, 4, 5), [(5,), (5,), (5,), (1, 4, 4, 1), (5,)]),
    ((1, 65, 65, 32), [(32,), (1,), (32,), (1, 65, 65, 32), (1,)]),
]


def inputs(shape):
    """Yield tensors of either sign, of one, of many ties, and with infinity."""
    x = 3 * np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    yield from (x, np.abs(x), np.round(2 * x) / 2)
    special = x.copy()
    special.flat[0] = np.inf
    yield special


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("shape", "padding", "to_nhwc"), QUANTIZED)
def test_quantize_equals_definition_in_a_frame_of_zero_points(shape, padding, to_nhwc, target):
    target = kt.make_target(target)
    func = quantize_kernel(QuantizeSpec(shape, padding, to_nhwc), Machine.of(target, 2))
    built = kt.build(func, target)["main"]
    top, left, bottom, right = padding
    for x in inputs(shape):
        found = dynamic_range(x)
        expected = quantize_by_range(x, found)
        if to_nhwc:
            expected = expected.transpose(0, 2, 3, 1)
        if any(padding):
            widths = [(0, 0), (top, bottom), (left, right), (0, 0)]
            expected = np.pad(expected, widths, constant_values=int(found[1]))
        arguments = kt.device_arguments(func, [x, found])
        built(*arguments)
        np.testing.assert_array_equal(arguments[-1].numpy(), expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("low", "high"), [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0)])
@pytest.mark.parametrize(("shape", "parameters"), REAL)
def test_real_sums_equal_definition(shape, parameters, low, high, target):
    """The product and what is added to it are rounded one after the other."""
    target, rng = kt.make_target(target), np.random.default_rng(7)
    spec = DequantizeSpec(shape, "int32", tuple(parameters), low, high)
    found = np.array([0.0123, 101], np.float32)
    sums = rng.integers(-(2**24), 2**24, shape).astype(np.int32)
    weight_sums = rng.integers(-9999, 9999, parameters[0]).astype(np.int32)
    scale = rng.uniform(0.001, 0.1, parameters[1]).astype(np.float32)
    bias = (1000 * rng.standard_normal(parameters[2])).astype(np.float32)
    arguments = [sums, found, weight_sums, scale, bias]
    total = sums.astype(np.int64) - 101 * weight_sums.astype(np.int64)
    if len(parameters) > 3:
        window_sums = rng.integers(0, 9999, parameters[3]).astype(np.int32)
        zero_point = rng.integers(-128, 128, parameters[4]).astype(np.int32)
        arguments += [window_sums, zero_point]
        total = total - window_sums.astype(np.int64) * zero_point
    expected = np.clip(real_sums(total, found, scale, bias), np.float32(low), np.float32(high))
    result = kt.run(dequantize_kernel(spec, Machine.of(target, 2)), target, arguments)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("target", kt.COMPILED)
def test_other_processors_compile_them(target):
    machine = Machine.of(target, 2)
    for func in (
        quantize_kernel(QuantizeSpec((1, 3, 5, 33), (1, 1, 1, 1), to_nhwc=True), machine),
        dequantize_kernel(DequantizeSpec((1, 5, 33), "int32", ((33,),) * 3, 0.0), machine),
    ):
        kt.build(func, kt.make_target(target))
