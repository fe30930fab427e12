"""Sums and products of all before, which TVM's own legalization leaves to another pass."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import graph, normal
from tvmquant.passes.legalizations import LEGALIZATIONS
from tvmquant.simulator import simulate


@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
def test_scans_become_kernels_that_compute_what_they_say(name: str) -> None:
    scan, x = getattr(relax.op, name), normal(2, 3, 4)
    module = graph(
        lambda emit, x: tuple(
            emit(scan(x, 1, "float32", exclusive)) for exclusive in (False, True)
        ),
        x.shape,
    )
    lowered = relax.transform.LegalizeOps(LEGALIZATIONS)(module)
    assert f"relax.{name}" in LEGALIZATIONS
    machine = relax.VirtualMachine(tvm.compile(lowered, "llvm"), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(x))
    for result, expected in zip(found, simulate(module, x), strict=True):
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)
