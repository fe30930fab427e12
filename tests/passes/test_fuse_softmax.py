"""Softmaxes in pieces become one operator, which computes the same."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import graph, normal, op_names, run_twin
from tvmquant.passes.fuse_softmax import FuseSoftmax

op = relax.op
SHAPE = (2, 5, 6)


def pieces(emit, x, axis, shift=True, summed=None):
    shifted = emit(op.subtract(x, emit(op.max(x, [axis], keepdims=True)))) if shift else x
    powers = emit(op.exp(shifted))
    total = emit(op.sum(powers, [axis] if summed is None else summed, keepdims=True))
    return emit(op.divide(powers, total))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("shift", [True, False])
def test_pieces_become_one(axis, shift):
    before = graph(lambda emit, x: pieces(emit, x, axis, shift), SHAPE)
    after = FuseSoftmax()(before)
    relax.analysis.well_formed(after)
    assert op_names(after) == ["nn.softmax"]
    tvm.ir.assert_structural_equal(FuseSoftmax()(after), after)
    x = normal(*SHAPE, scale=3.0)
    np.testing.assert_allclose(run_twin(after, [x])[0], run_twin(before, [x])[0], atol=1e-6)


@pytest.mark.parametrize("summed", [[1, 2], [2]])
def test_other_sums_stay(summed):
    before = graph(lambda emit, x: pieces(emit, x, 1, summed=summed), SHAPE)
    x = normal(*SHAPE)
    after = FuseSoftmax()(before)
    np.testing.assert_allclose(run_twin(after, [x])[0], run_twin(before, [x])[0], atol=1e-6)
    assert ("nn.softmax" in op_names(after)) == (summed == [2])
