import pytest
import tvm
from tvm import relax

from tests.passes.graphs import const, graph, normal, quantize
from tvmquant.errors import QuantizationError
from tvmquant.passes.verify_integer_only import FloatOp, VerifyIntegerOnly, float_audit

op = relax.op
SHAPE = (2, 4, 6, 6)
NO_FORM = "the operator has no integer form"


def integer(body):
    """Return the integer form of a network of one input."""
    return quantize(graph(body, SHAPE), [normal(*SHAPE)]).integer


def conv(emit, x):
    return emit(op.nn.conv2d(x, const(normal(4, 4, 3, 3)), padding=1), "conv")


def test_integers_between_the_borders_pass():
    module = integer(conv)
    assert float_audit(module) == []
    tvm.ir.assert_structural_equal(VerifyIntegerOnly()(module), module)


@pytest.mark.parametrize("function", [op.argmax, op.argmin])
def test_float_operands_count_although_the_result_is_an_integer(function):
    module = integer(lambda emit, x: emit(function(conv(emit, x), 1), "best"))
    name = "argmax" if function is op.argmax else "argmin"
    assert float_audit(module) == [FloatOp(name, "best", NO_FORM)]


def test_a_cast_from_float_counts():
    module = integer(lambda emit, x: emit(op.astype(conv(emit, x), "int32"), "cast"))
    assert float_audit(module) == [FloatOp("astype", "cast", NO_FORM)]


def test_a_tuple_of_floats_counts():
    def body(emit, q):
        x = emit(op.astype(q, "float32"), "to_float")
        return emit(op.argmax(emit(op.concat([x, x], 1), "join"), 1), "best")

    found = [entry.node for entry in float_audit(graph(body, SHAPE, dtype="uint8"))]
    assert found == ["to_float", "join", "best"]


def test_integer_operands_of_the_same_operators_do_not_count():
    def body(emit, q):
        best = emit(op.argmax(emit(op.concat([q, q], 1), "join"), 1), "best")
        return emit(op.astype(best, "int32"), "cast")

    assert float_audit(graph(body, SHAPE, dtype="uint8")) == []


def test_results_of_float_count_with_their_reason():
    module = integer(lambda emit, x: emit(op.nn.softmax(conv(emit, x), 1), "soft"))
    assert [str(entry) for entry in float_audit(module)] == [
        "softmax (soft): softmax has no integer form yet"
    ]


def test_strict_mode_names_the_node():
    module = integer(lambda emit, x: emit(op.argmax(conv(emit, x), 1), "best"))
    with pytest.raises(QuantizationError, match=r"would stay float:\n  - argmax \(best"):
        VerifyIntegerOnly()(module)
