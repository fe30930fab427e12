"""Signs that layers of one bit read: packed from the bytes they are signs of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import graph
from tests.schedules.kernel_testing import make_target
from tvmquant.arithmetic import requantize
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.machine import Machine
from tvmquant.passes import pipeline

ROWS, CHANNELS, OUTPUTS = 7, 96, 5
RNG = np.random.default_rng(0)
# of either direction, and of channels that never change
MULTIPLIER = RNG.choice([-4, 0, 4], CHANNELS).astype(np.int32)
OFFSET = (1 - 4 * RNG.integers(-20, 280, CHANNELS) * np.sign(MULTIPLIER)).astype(np.int32)
SHIFT = np.ones(CHANNELS, np.int32)
ONE_STEP = np.where(np.arange(256) >= 77, 129, 127).astype(np.uint8)
TWO_STEPS = np.where(abs(np.arange(256) - 128) >= 9, 129, 127).astype(np.uint8)
X = RNG.integers(0, 256, (ROWS, CHANNELS)).astype(np.uint8)


def by_channel(emit: Any, x: Any) -> Any:
    attrs = {
        "acc_zero_point": 3, "residual_zero_point": 0, "output_zero_point": 128, "qmin": 127,
        "qmax": 129, "axis": 1, "compute_dtype": "int32", "out_dtype": "uint8", "id": "sign",
    }  # fmt: skip
    return emit(
        qop.emit(qop.REQUANTIZE, [x, *map(qop.constant, (MULTIPLIER, SHIFT, OFFSET))], attrs)
    )


def by_table(values: Any) -> Any:
    def signs(emit: Any, x: Any) -> Any:
        attrs = {"out_dtype": "uint8", "id": "sign"}
        return emit(qop.emit(qop.TABLE, [x, qop.constant(values)], attrs))

    return signs


CASES = {
    "channels": (by_channel, lambda x: requantize(
        [(x, 3, MULTIPLIER)], OFFSET, SHIFT, 128, 127, 129, "uint8"
    ), 1),
    "table": (by_table(ONE_STEP), lambda x: ONE_STEP[x], 1),
    "not a threshold": (by_table(TWO_STEPS), lambda x: TWO_STEPS[x], 2),
    "signs": (lambda _emit, x: x, lambda x: x, 1),
}  # fmt: skip


@pytest.mark.parametrize("target", ["haswell", "x86-64"])
@pytest.mark.parametrize("name", CASES)
def test_signs_are_packed_once_from_what_they_are_signs_of(name: str, target: str) -> None:
    signs, expected, count = CASES[name]
    weights = [RNG.choice([-1, 1], (OUTPUTS, CHANNELS)).astype(np.int8) for _ in range(2)]

    def body(emit: Any, x: Any) -> Any:
        bits = signs(emit, x)
        return relax.Tuple([emit(dense(bits, weight, i)) for i, weight in enumerate(weights)])

    def dense(bits: Any, weight: Any, index: int) -> Any:
        attrs = {
            "input_zero_point": 128, "input_qmin": 127, "input_qmax": 129, "choice": "w1a1",
            "epilogue": 0, "out_dtype": "int32", "id": f"dense{index}",
        }  # fmt: skip
        bias = -128 * weight.sum(axis=1, dtype=np.int32)
        return qop.emit(qop.QDENSE, [bits, *map(qop.constant, (weight, bias))], attrs)

    x = X if name != "signs" else np.where(X < 128, 127, 129).astype(np.uint8)
    module = pipeline.lower(
        graph(body, x.shape, dtype="uint8"), Machine.of(make_target(target), 2), 1
    )
    called = [
        str(call.args[0].name_hint)
        for _, call in bindings_of(module["main"])
        if isinstance(call, relax.Call) and isinstance(call.args[0], tvm.ir.GlobalVar)
    ]
    assert sum(not name.startswith("reshape") for name in called) == 2 + count
    assert sum(name.startswith("pack_bits") for name in called) == 1
    built = relax.build(
        module, make_target(target), relax_pipeline=pipeline.virtual_machine_pipeline()
    )
    found = relax.VirtualMachine(built, tvm.cpu())["main"](tvm.runtime.tensor(x, tvm.cpu()))
    for weight, sums in zip(weights, found, strict=True):
        np.testing.assert_array_equal(sums.numpy(), (expected(x).astype(int) - 128) @ weight.T)
