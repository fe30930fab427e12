"""Functions of float results that make much of small values are computed in float."""

import pytest
from tvm import relax

from tests.passes.graphs import check, const, graph, normal, op_names
from tvmquant.passes.amplification import amplified
from tvmquant.passes.verify_integer_only import FUNCTION_REASON, float_audit

op = relax.op
SHAPE = (2, 6, 5, 4)

READERS = {
    "root": lambda emit, t: emit(op.sqrt(t)),
    "shifted root": lambda emit, t: emit(op.rsqrt(emit(op.add(t, const(1e-5))))),
    "logarithm of a view": lambda emit, t: emit(op.log(emit(op.reshape(t, (2, 20, 6))))),
    "reciprocal": lambda emit, t: emit(op.divide(const(1.0), t)),
}


@pytest.mark.parametrize("reader", READERS)
def test_small_values_matter_to_roots_logarithms_and_reciprocals(reader):
    module = graph(lambda emit, x: READERS[reader](emit, emit(op.abs(x))), SHAPE)
    names = {str(var.name) for var in
             amplified(module["main"])}  # fmt: skip
    assert "lv" in names


def test_divisors_count_where_they_are_asked_for():
    def body(emit, x, y):
        return emit(op.divide(x, emit(op.add(y, const(1.0)))))

    main = graph(body, SHAPE, SHAPE)["main"]
    assert not amplified(main)
    assert main.params[1] in amplified(main, divisors=True)
    assert main.params[0] not in amplified(main, divisors=True)


def test_a_root_of_a_float_result_stays_float_and_says_so():
    def body(emit, x):
        weight = const(normal(6, 6, 1, 1))
        y = emit(op.nn.conv2d(x, weight), "a")
        total = emit(op.sum(emit(op.multiply(y, y)), [1], True))
        norm = emit(op.sqrt(emit(op.add(total, const(0.1)))), "norm")
        return emit(op.nn.conv2d(emit(op.multiply(y, norm)), weight), "b")

    levels = check(graph(body, SHAPE), normal(*SHAPE), exact=False)
    assert [op.op for op in float_audit(levels.integer)] == ["sum", "add", "sqrt"]
    assert {found.reason for found in float_audit(levels.integer)[1:]} == {FUNCTION_REASON}
    assert "table" not in op_names(levels.integer)
