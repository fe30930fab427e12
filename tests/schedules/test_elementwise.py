"""Elementwise kernels against numpy."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.schedules import kernel_testing as kt
from tvmquant.machine import Machine
from tvmquant.schedules import elementwise
from tvmquant.schedules.epilogue import Epilogue

TARGETS = [kt.NATIVE, *kt.EXECUTED]


def values(rng, dtype, shape):
    high = 20000 if dtype == "int32" else np.iinfo(dtype).max
    low = 0 if dtype == "uint8" else -high
    return rng.integers(low, high + 1, shape).astype(dtype)


def check(spec, inputs, expected, target):
    target = kt.make_target(target)
    found = kt.run(elementwise.kernel(spec, Machine.of(target, 2)), target, inputs)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("compute_dtype", ["int32", "int64"])
@pytest.mark.parametrize(
    ("shape", "dtype", "parameter_shape", "residual_shape", "residual_dtype"),
    [
        ((1, 7, 5, 19), "int32", (19,), None, "uint8"),
        ((2, 28, 28, 64), "uint8", (1,), (2, 28, 28, 64), "uint8"),
        ((2, 3, 5, 40), "uint8", (40,), (2, 1, 1, 40), "int16"),
        ((2, 3, 5, 33), "int16", (1, 3, 5, 1), (33,), "uint8"),
        ((3, 10), "int32", (10,), (3, 10), "int32"),
        ((7,), "uint8", (1,), None, "uint8"),
    ],
)
def test_requantize(
    shape, dtype, parameter_shape, residual_shape, residual_dtype, compute_dtype, target
):
    rng = np.random.default_rng(11)
    two = residual_shape is not None
    out_dtype, qmin, qmax = ("int16", -900, 700) if dtype == "int16" else ("uint8", 3, 250)
    epilogue = Epilogue(compute_dtype, out_dtype, qmin, qmax, residual=two)
    acc = values(rng, dtype, shape)
    count, magnitude = int(np.prod(parameter_shape)), int(abs(acc.astype(np.int64)).max())
    parameters = kt.epilogue_inputs(rng, epilogue, count, magnitude)
    parameters = {k: v.reshape(parameter_shape) for k, v in parameters.items()}
    inputs, residual = [acc, *parameters.values()], None
    if two:
        factor = rng.integers(1, 9, parameter_shape).astype(compute_dtype)
        residual = (values(rng, residual_dtype, residual_shape), factor)
        inputs += residual
    spec = elementwise.RequantizeSpec(
        shape, dtype, epilogue, parameter_shape, residual_shape, residual_dtype
    )
    expected = kt.apply_epilogue(epilogue, acc, residual=residual, **parameters)
    assert len(np.unique(expected)) > 4
    check(spec, inputs, expected, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("compute_dtype", ["int32", "int64"])
@pytest.mark.parametrize("narrow", [False, True])
def test_ties_to_even_and_clips_of_32_bits(narrow, compute_dtype, target):
    rng = np.random.default_rng(14)
    epilogue = Epilogue(
        compute_dtype, "uint8", 3, 250, narrow=narrow and compute_dtype == "int64",
        ties_to_even=True, zero_point=17,
    )  # fmt: skip
    acc = rng.integers(-2000, 2000, (1, 5, 6, 24)).astype(np.int32)
    numbers = {"multiplier": np.full(24, 4), "offset": np.full(24, 8), "shift": np.full(24, 6)}
    parameters = {name: array.astype(compute_dtype) for name, array in numbers.items()}
    spec = elementwise.RequantizeSpec(acc.shape, "int32", epilogue, (24,))
    expected = kt.apply_epilogue(epilogue, acc, **parameters)
    assert_array_equal(expected, np.clip(np.rint((acc * 4 + 8) / 64) + 17, 3, 250))
    check(spec, [acc, *parameters.values()], expected, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("compute_dtype", ["int32", "int64", None])
@pytest.mark.parametrize(
    ("a_shape", "b_shape"), [((2, 5, 7, 24), (2, 1, 1, 24)), ((1, 1, 1, 9), (1, 6, 6, 9))]
)
def test_multiply(a_shape, b_shape, compute_dtype, target):
    rng = np.random.default_rng(12)
    a, b = values(rng, "uint8", a_shape), values(rng, "uint8", b_shape)
    product = (a.astype(np.int32) - 3) * (b.astype(np.int32) - 128)
    if compute_dtype is None:
        check(elementwise.MultiplySpec(a_shape, b_shape, 3, 128, None), [a, b], product, target)
        return
    epilogue = Epilogue(compute_dtype, "uint8", 0, 255)
    parameters = kt.epilogue_inputs(rng, epilogue, 1, 255 * 128)
    expected = kt.apply_epilogue(epilogue, product, **parameters)
    spec = elementwise.MultiplySpec(a_shape, b_shape, 3, 128, epilogue)
    check(spec, [a, b, *parameters.values()], expected, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("shape", [(1, 28, 28, 48), (2, 3, 37), (5,)])
def test_table(shape, dtype, target):
    rng = np.random.default_rng(13)
    q, table = values(rng, "uint8", shape), values(rng, dtype, 256)
    q.flat[:2] = [0, 255]
    check(elementwise.TableSpec(shape, dtype), [q, table], table[q], target)


@pytest.mark.parametrize("target", kt.COMPILED, ids=str)
def test_compiles_for_other_targets(target):
    target = kt.make_target(target)
    epilogue = Epilogue("int64", "uint8", 0, 255, residual=True)
    shape = (1, 5, 5, 24)
    for spec in [
        elementwise.RequantizeSpec(shape, "uint8", epilogue, (24,), shape),
        elementwise.TableSpec(shape),
    ]:
        kt.build(elementwise.kernel(spec, Machine.of(target, 4)), target)
