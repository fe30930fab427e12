"""Products with constants are layers, whichever side the constant is on."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.passes.graphs import calls, check, const, graph, normal, op_names, run_twin
from tvmquant.passes.arrange_matmuls import ArrangeMatmuls
from tvmquant.passes.verify_integer_only import CONSTANT_REASON, float_audit

op = relax.op
N = tirx.Var("n", "int64")
ROWS, MAPS = (2, 7, 6), (2, 3, 7, 6)
DENSE, CONV = "matmul", "nn.conv2d"

# shape, constant, whether it is on the left, what multiplies, and how often axes are exchanged
CASES = {
    "left": (ROWS, (5, 7), True, DENSE, 2),
    "left of maps": (MAPS, (5, 7), True, DENSE, 2),
    "left of one": (ROWS, (1, 5, 7), True, DENSE, 2),
    "row": (ROWS, (7,), True, DENSE, 1),
    "right of one": (MAPS, (1, 6, 4), False, DENSE, 0),
    "left of each channel": (MAPS, (3, 5, 7), True, CONV, 0),
    "right of each channel": (MAPS, (3, 6, 4), False, CONV, 2),
}


def product(shape, weight, left, *functions):
    def body(emit, x):
        w = const(normal(*weight))
        y = emit(op.matmul(w, x) if left else op.matmul(x, w), "product")
        for function in functions:
            y = emit(function(y))
        return y

    return graph(body, shape)


@pytest.mark.parametrize("name", CASES)
def test_constants_come_to_the_right(name):
    shape, weight, left, multiplies, exchanges = CASES[name]
    before = product(shape, weight, left)
    after = ArrangeMatmuls()(before)
    relax.analysis.well_formed(after)
    names = op_names(after)
    assert [n for n in names if n in (DENSE, CONV)] == [multiplies]
    assert names.count("permute_dims") == exchanges
    x = normal(*shape)
    for want, got in zip(run_twin(before, [x]), run_twin(after, [x]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    tvm.ir.assert_structural_equal(ArrangeMatmuls()(after), after)
    levels = check(after, x)
    assert not float_audit(levels.integer)


def test_functions_and_constants_stay_with_their_layer():
    functions = (
        lambda y: op.add(y, const(normal(5, 1))),
        lambda y: op.multiply(y, const(normal(6))),
        op.nn.relu,
        lambda y: op.clip(y, 0.0, 6.0),
    )
    before = product(ROWS, (5, 7), True, *functions)
    after = ArrangeMatmuls()(before)
    names = ["add", "multiply", "nn.relu", "clip"]
    assert op_names(after) == ["permute_dims", DENSE, *names, "permute_dims"]
    x = normal(*ROWS)
    np.testing.assert_allclose(run_twin(after, [x])[0], run_twin(before, [x])[0], rtol=1e-4)


def test_what_is_read_twice_is_exchanged_once():
    def body(emit, x):
        y = emit(op.matmul(const(normal(7, 7)), x))
        return emit(op.multiply(emit(op.sigmoid(y)), y))

    after = ArrangeMatmuls()(graph(body, ROWS))
    assert op_names(after).count("permute_dims") == 2


def test_the_batch_may_be_open():
    after = ArrangeMatmuls()(product((N, 3, 7, 6), (3, 5, 7), True))
    x = normal(*MAPS)
    np.testing.assert_allclose(run_twin(after, [x])[0], normal(3, 5, 7) @ x, rtol=1e-4, atol=1e-5)


STAYS = {
    "one for each of the batch": ((2, 7, 6), (2, 6, 4), False),
    "further channels": ((2, 1, 7, 6), (3, 6, 4), False),
    "a matrix on the right": (ROWS, (6, 4), False),
}


@pytest.mark.parametrize("name", STAYS)
def test_others_stay(name):
    module = product(*STAYS[name])
    tvm.ir.assert_structural_equal(ArrangeMatmuls()(module), module)


def test_the_audit_says_why_a_product_with_constants_stayed():
    levels = check(product(*STAYS["further channels"]), normal(2, 1, 7, 6))
    (found,) = float_audit(levels.integer)
    assert found.reason == CONSTANT_REASON
    assert len(calls(levels.integer, "relax.matmul")) == 1
