"""Float operators on rows become kernels of ours; what combines other axes does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import graph
from tests.schedules.kernel_testing import make_target
from tvmquant.machine import Machine
from tvmquant.passes.lower_rows import LowerRows
from tvmquant.simulator import simulate

SHAPE = (2, 3, 4, 19)
GAMMA = np.linspace(0.5, 2, 19, dtype=np.float32)
BETA = np.linspace(-1, 1, 19, dtype=np.float32)
ON_ROWS: dict[str, Callable[[Any], relax.Expr]] = {
    "softmax": lambda x: relax.op.nn.softmax(x, -1),
    "log_softmax": lambda x: relax.op.nn.log_softmax(x, 3),
    "layer_norm": lambda x: relax.op.nn.layer_norm(x, relax.const(GAMMA), relax.const(BETA), [-1]),
    "mean": lambda x: relax.op.mean(x, [-1, 2]),
    "sum": lambda x: relax.op.sum(x, [2, 3], keepdims=True),
    "max": lambda x: relax.op.max(x, None),
}
OTHERS: dict[str, Callable[[Any], relax.Expr]] = {
    "softmax of channels": lambda x: relax.op.nn.softmax(x, 1),
    "mean of rows": lambda x: relax.op.mean(x, [1, 3]),
}


def lowered(module: tvm.IRModule) -> tvm.IRModule:
    return LowerRows(Machine.of("haswell", 2))(module)


@pytest.mark.parametrize("name", ON_ROWS)
def test_rows_have_kernels_that_compute_the_same(name: str) -> None:
    before = graph(lambda emit, x: emit(ON_ROWS[name](x)), SHAPE)
    after = lowered(before)
    relax.analysis.well_formed(after)
    assert any("tvmquant.kernel" in f.attrs for _, f in after.functions_items() if f.attrs)
    tvm.ir.assert_structural_equal(lowered(after), after)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    machine = relax.VirtualMachine(tvm.compile(after, target=make_target("haswell")), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(x)).numpy()
    (expected,) = simulate(before, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_other_axes_are_left(name: str) -> None:
    before = graph(lambda emit, x: emit(OTHERS[name](x)), SHAPE)
    tvm.ir.assert_structural_equal(lowered(before), before)
