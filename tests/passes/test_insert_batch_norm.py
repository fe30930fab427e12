import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal, run_twin
from tvmquant.passes.fold_batch_norm import BATCH_NORM
from tvmquant.passes.insert_batch_norm import InsertBatchNorm, layers_without_batch_norm

op = relax.op


def _norm(emit, x, channels):
    ones, zeros = const(np.ones(channels)), const(np.zeros(channels))
    return emit(
        relax.TupleGetItem(
            emit(op.nn.batch_norm(x, ones, zeros, zeros, ones, axis=1, training=False)), 0
        )
    )


def network(emit, x):
    y = emit(op.nn.conv2d(x, const(normal(5, 4, 1, 1))), "a")
    y = emit(op.nn.relu(emit(op.add(y, const(normal(1, 5, 1, 1))))))
    y = emit(op.nn.conv2d(y, const(normal(3, 5, 3, 3))), "b")
    y = _norm(emit, emit(op.add(y, const(normal(1, 3, 1, 1)))), 3)
    flat = emit(op.reshape(y, (2, 48)))
    return emit(op.matmul(flat, const(normal(48, 6))), "c")


STATISTICS = {name: (normal(n).astype(np.float64), np.abs(normal(n)).astype(np.float64))
              for name, n in (("a", 5), ("b", 3), ("c", 6))}  # fmt: skip


def test_what_has_none_gets_the_identity():
    before = graph(network, (2, 4, 6, 6))
    assert set(layers_without_batch_norm(before["main"])) == {"a", "c"}
    after = InsertBatchNorm(STATISTICS)(before)
    relax.analysis.well_formed(after)
    norms = calls(after, BATCH_NORM)
    assert [int(norm.attrs.axis) for norm in norms] == [1, 1, 1]
    x = normal(2, 4, 6, 6)
    (expected,), (found,) = (run_twin(module, [x]) for module in (before, after))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("statistics", [{}, {"b": STATISTICS["b"]}, {"z": STATISTICS["a"]}])
def test_others_stay(statistics):
    before = graph(network, (2, 4, 6, 6))
    tvm.ir.assert_structural_equal(InsertBatchNorm(statistics)(before), before)


def test_twice_is_once():
    insert = InsertBatchNorm(STATISTICS)
    once = insert(graph(network, (2, 4, 6, 6)))
    tvm.ir.assert_structural_equal(insert(once), once)
