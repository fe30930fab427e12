"""Choices and replacements by indices follow TVM's, sums and products of all before numpy's."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import graph
from tvmquant.simulator import simulate

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
op = relax.op


def integers(shape, below):
    return relax.const(np.random.default_rng(1).integers(0, below, shape), "int64")


def const(*shape):
    return relax.const(np.random.default_rng(2).normal(size=shape).astype(np.float32))


OPERATORS = [
    lambda x: op.gather_elements(x, integers((2, 5, 4), 3), 1),
    lambda x: op.gather_elements(x, integers((1, 2, 6), 4), 2),
    lambda x: op.gather_nd(x, integers((5, 2), 2)),
    lambda x: op.gather_nd(x, integers((2, 4, 1), 3), 1),
    lambda x: op.scatter_elements(x, relax.const([[[2, 0]]], "int64"), const(1, 1, 2), 2),
    lambda x: op.scatter_nd(x, relax.const([[1, 2], [0, 0]], "int64"), const(2, 4)),
    *(
        lambda x, how=how: op.scatter_elements(x, integers((2, 5, 4), 3), const(2, 5, 4), 1, how)
        for how in ("add", "mul", "max", "min")
    ),
    *(
        lambda x, how=how: op.scatter_nd(x, integers((6, 3), 2), const(6), how)
        for how in ("add", "mul", "max", "min")
    ),
]


def test_indices_follow_tvm():
    module = graph(lambda emit, x: tuple(emit(make(x)) for make in OPERATORS), X.shape)
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    expected = machine["main"](tvm.runtime.tensor(X))
    for result, reference in zip(simulate(module, X), expected, strict=True):
        assert str(result.dtype) == str(reference.dtype)
        np.testing.assert_allclose(result, reference.numpy(), rtol=1e-6)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize(("name", "first"), [("cumsum", 0), ("cumprod", 1)])
def test_scans_follow_numpy(name, first, exclusive):
    scan = getattr(op, name)
    module = graph(lambda emit, x: emit(scan(x, 1, "float32", exclusive)), X.shape)
    (found,) = simulate(module, X)
    expected = getattr(np, name)(X, 1)
    if exclusive:
        expected = np.concatenate([np.full((2, 1, 4), first, "f"), expected[:, :-1]], 1)
    np.testing.assert_array_equal(found, expected)
