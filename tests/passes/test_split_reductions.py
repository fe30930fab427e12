"""Sums and means over whichever axes become windows and contractions, and so integers."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.passes.graphs import calls, check, const, graph, normal, op_names, quantize, run_twin
from tvmquant.passes.split_reductions import SplitReductions
from tvmquant.passes.verify_integer_only import float_audit

op = relax.op
N = tirx.Var("n", "int64")
IMAGE, ROWS, DEEP = (2, 6, 5, 4), (2, 7, 6), (2, 3, 4, 2, 5)
CONV, DENSE = "nn.conv2d", "matmul"

# by the shape, the axes, and what computes the reduction
CASES = [
    (IMAGE, [1], [CONV]),
    (IMAGE, [1, 2], ["mean", CONV]),
    (IMAGE, [1, 3], ["mean", CONV]),
    (IMAGE, [1, 2, 3], ["mean", CONV]),
    (IMAGE, [2, 3], ["mean"]),
    (ROWS, [1], ["mean"]),
    (ROWS, [2], [DENSE]),
    (ROWS, [1, 2], [DENSE]),
    ((2, 9), [1], [DENSE]),
    (DEEP, [2], ["mean"]),
    (DEEP, [1, 3], ["mean", "mean"]),
    (DEEP, [2, 4], [DENSE, "mean"]),
]


def reduced(shape, axes, function=op.mean, keep=True):
    def body(emit, x):
        y = emit(op.nn.relu(x))
        return emit(function(y, axes, keep), "reduce")

    return graph(body, shape)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("function", [op.mean, op.sum])
@pytest.mark.parametrize(("shape", "axes", "names"), CASES)
def test_reductions_become_windows_and_contractions(shape, axes, names, function, keep):
    before = reduced(shape, axes, function, keep)
    after = SplitReductions()(before)
    relax.analysis.well_formed(after)
    moves = ("nn.relu", "reshape", "permute_dims", "multiply")
    assert [name for name in op_names(after) if name not in moves] == names
    x = normal(*shape)
    for want, got in zip(run_twin(before, [x]), run_twin(after, [x]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    tvm.ir.assert_structural_equal(SplitReductions()(after), after)


@pytest.mark.parametrize(("shape", "axes", "names"), CASES)
def test_they_compute_in_integers(shape, axes, names):
    def body(emit, x):
        return emit(op.nn.relu(emit(op.add(emit(op.sum(x, axes, True)), const(-0.1)))))

    module = SplitReductions()(graph(body, shape))
    levels = check(module, normal(*shape))
    assert not float_audit(levels.integer)


def test_the_batch_may_be_open():
    after = SplitReductions()(reduced((N, 7, 6), [1], keep=False))
    (result,) = run_twin(after, [normal(3, 7, 6)])
    np.testing.assert_allclose(result, np.maximum(normal(3, 7, 6), 0).mean(1), rtol=1e-5)


def test_columns_of_rows_are_averaged_where_they_lie():
    """Of (N, H, W, C) behind a dense layer no axis moves."""

    def body(emit, x):
        y = emit(op.matmul(x, const(normal(6, 6))))
        return emit(op.mean(y, [1, 2]), "reduce")

    levels = quantize(SplitReductions()(graph(body, (2, 5, 4, 6))), [normal(2, 5, 4, 6)])
    axes = [[int(a) for a in c.attrs.axes] for c in calls(levels.integer, "relax.permute_dims")]
    assert axes == [[0, 3, 1, 2], [0, 2, 3, 1]]


AMPLIFIED = {
    "nothing but a sum of squares": lambda emit, m: emit(op.nn.relu(m)),
    "root": lambda emit, m: emit(op.sqrt(m)),
    "shifted root": lambda emit, m: emit(op.rsqrt(emit(op.add(m, const(1e-5))))),
    "logarithm": lambda emit, m: emit(op.log(m)),
    "reciprocal": lambda emit, m: emit(op.divide(const(1.0), m)),
}


@pytest.mark.parametrize("case", AMPLIFIED)
def test_squares_and_what_amplifies_small_sums_keep_them_in_float(case):
    def body(emit, x):
        y = emit(op.square(x) if "squares" in case else op.abs(x))
        return AMPLIFIED[case](emit, emit(op.mean(y, [1], True)))

    module = graph(body, IMAGE)
    tvm.ir.assert_structural_equal(SplitReductions()(module), module)


@pytest.mark.parametrize(("shape", "axes"), [((2, 40000), [1]), ((2, 4, 4), [0]), ((N, 4), [0])])
def test_what_fits_no_accumulator_or_mixes_the_batch_stays(shape, axes):
    module = reduced(shape, axes)
    tvm.ir.assert_structural_equal(SplitReductions()(module), module)
