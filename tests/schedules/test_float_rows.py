"""Operators on rows of floats, against numpy in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.machine import Machine
from tvmquant.schedules import float_rows
from tvmquant.schedules.float_rows import RowsSpec

OPERATIONS = ("softmax", "log_softmax", "layer_norm", *float_rows.REDUCTIONS)


def expected(spec: RowsSpec, x: np.ndarray, *parameters: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    if spec.operation == "layer_norm":
        centered = x - x.mean(1, keepdims=True)
        scaled = centered / np.sqrt(np.square(centered).mean(1, keepdims=True) + spec.epsilon)
        return scaled * parameters[0] + parameters[1]
    if spec.operation.endswith("softmax"):
        powers = np.exp(x - x.max(1, keepdims=True))
        result = powers / powers.sum(1, keepdims=True)
        return np.log(result) if spec.operation == "log_softmax" else result
    return getattr(np, spec.operation)(x, axis=1)


@pytest.mark.parametrize("target", ["x86-64", "haswell", kt.NATIVE])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_with_and_without_tails(operation: str, target: str) -> None:
    rng = np.random.default_rng(0)
    for rows, length in ((1, 1), (3, 7), (2, 128), (5, 197)):
        spec = RowsSpec(operation, rows, length, 1e-5 if operation == "layer_norm" else 0.0)
        x = (rng.standard_normal((rows, length)) * 4 + 3).astype(np.float32)
        inputs = [x]
        if operation == "layer_norm":
            inputs += [rng.standard_normal(length).astype(np.float32) for _ in range(2)]
        kernel = float_rows.kernel(spec, Machine.of(kt.make_target(target), 2))
        found = kt.run(kernel, kt.make_target(target), inputs)
        np.testing.assert_allclose(found, expected(spec, *inputs), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("target", kt.COMPILED, ids=str)
def test_compiles_for_other_targets(target: object) -> None:
    for operation in OPERATIONS:
        kernel = float_rows.kernel(
            RowsSpec(operation, 40, 1001), Machine.of(kt.make_target(target), 2)
        )
        kt.build(kernel, kt.make_target(target))
