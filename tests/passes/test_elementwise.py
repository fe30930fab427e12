import math

import numpy as np
import pytest
from tvm import relax

from tests.passes.graphs import const, graph, run_twin
from tvmquant.ir.rewriter import bindings_of
from tvmquant.passes.elementwise import BINARY, ELEMENTWISE, LOGICAL, UNARY, evaluate, scalar_bound

op = relax.op
X = np.linspace(-4, 4, 81).astype(np.float32)
POSITIVE = {"relax.log", "relax.sqrt", "relax.rsqrt"}
WITHIN_1 = {"relax.acos", "relax.asin", "relax.atanh"}


def the_call(module):
    (_, call), *_ = bindings_of(module["main"])
    return call


def function_of(name):
    module, _, function = name.removeprefix("relax.").rpartition(".")
    return getattr(getattr(op, module) if module else op, function)


@pytest.mark.parametrize("name", sorted(UNARY))
def test_unary_functions_agree_with_torch(name):
    x = np.abs(X) + np.float32(0.01) if name in POSITIVE else X
    if name in WITHIN_1:
        x = X / np.float32(4.1)
    elif name == "relax.acosh":
        x = np.abs(X) + np.float32(1)
    module = graph(lambda emit, x: emit(function_of(name)(x)), x.shape)
    result = evaluate(the_call(module), [x.astype(np.float64)])
    assert result.dtype == np.float64
    np.testing.assert_allclose(run_twin(module, [x])[0], result, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", sorted(BINARY))
@pytest.mark.parametrize("constant_first", [False, True])
def test_binary_functions_keep_the_order_of_their_operands(name, constant_first):
    x = np.abs(X) + np.float32(0.01)

    def ordered(x, constant):
        return [constant, x] if constant_first else [x, constant]

    module = graph(lambda emit, x: emit(function_of(name)(*ordered(x, const(1.5)))), x.shape)
    result = evaluate(the_call(module), ordered(x.astype(np.float64), np.float64(1.5)))
    np.testing.assert_allclose(run_twin(module, [x])[0], result, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(LOGICAL))
def test_logical_functions_agree_with_torch(name):
    truth = name.startswith("relax.logical_")
    one_operand = name == "relax.logical_not"

    def body(emit, x):
        left = emit(op.greater(x, const(0.5))) if truth else x
        right = emit(op.less(x, const(1.5))) if truth else const(0.5)
        return emit(function_of(name)(*([left] if one_operand else [left, right])))

    module = graph(body, X.shape)
    left, right = (X > 0.5, X < 1.5) if truth else (X, np.float64(0.5))
    call = [call for _, call in bindings_of(module["main"]) if isinstance(call, relax.Call)][-1]
    result = evaluate(call, [left] if one_operand else [left, right])
    np.testing.assert_array_equal(run_twin(module, [X])[0], result)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: op.clip(x, -1, 2.5),
        lambda x: op.clip(x, 0, math.inf),
        lambda x: op.nn.leakyrelu(x, 0.2),
    ],
)
def test_functions_with_attributes(function):
    module = graph(lambda emit, x: emit(function(x)), X.shape)
    call = the_call(module)
    assert call.op.name in ELEMENTWISE
    np.testing.assert_allclose(
        run_twin(module, [X])[0], evaluate(call, [X.astype(np.float64)]), rtol=1e-6
    )


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1.5, math.inf)])
def test_scalar_bound_reads_integers_and_floats(low, high):
    call = the_call(graph(lambda emit, x: emit(op.clip(x, low, high)), (3,)))
    assert (scalar_bound(call.args[1]), scalar_bound(call.args[2])) == (low, high)


def test_undefined_values_come_without_a_warning():
    call = the_call(graph(lambda emit, x: emit(op.log(x)), (3,)))
    result = evaluate(call, [np.array([-1.0, 0.0, 1.0])])
    assert np.isnan(result[0])
    assert result[1] == -math.inf
