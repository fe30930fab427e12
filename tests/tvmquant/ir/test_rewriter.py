import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import const, graph, op_names
from tvmquant.errors import ModelError
from tvmquant.ir.rewriter import (
    DataflowRewriter,
    bindings_of,
    count_uses,
    span_name,
    used_vars,
)


def network(emit, x):
    y = emit(relax.op.nn.relu(x), "relu_7")
    parts = emit(relax.op.split(y, 2, axis=1))
    left, right = (emit(relax.TupleGetItem(parts, i)) for i in range(2))
    return emit(relax.op.concat([left, right, left], axis=1)), y


def test_what_is_not_handled_is_copied():
    module = graph(network, (2, 4))
    before = module.script()
    after = DataflowRewriter(module).rewrite()
    tvm.ir.assert_structural_equal(after, module)
    assert module.script() == before
    assert [str(p.name) for p in after["main"].params] == ["x0"]


def test_spans_survive():
    after = DataflowRewriter(graph(network, (2, 4))).rewrite()
    names = [span_name(value) for _, value in bindings_of(after["main"])]
    assert names[0] == "relu_7"


def test_function_attributes_and_other_functions_are_kept():
    module = graph(network, (2, 4))
    other = relax.BlockBuilder()
    y = relax.Var("y", relax.TensorType([3], "float32"))
    with other.function("helper", [y]):
        other.emit_func_output(other.emit(relax.op.tanh(y)))
    module["helper"] = other.finalize()["helper"]
    module["main"] = module["main"].with_attr("num_input", 1)
    after = DataflowRewriter(module).rewrite()
    tvm.ir.assert_structural_equal(after["helper"], module["helper"])
    assert int(after["main"].attrs["num_input"]) == 1


class _DoubleRelu(DataflowRewriter):
    def visit_binding(self, var, value):
        if isinstance(value, relax.Call) and value.op.name == "relax.nn.relu":
            x = self.lookup(value.args[0])
            return relax.op.add(self.emit(relax.op.abs(x)), x)
        return None


def test_replacements_reach_every_reader_and_dead_bindings_go():
    def before(emit, x):
        y = emit(relax.op.nn.relu(x))
        emit(relax.op.tanh(y))
        return emit(relax.op.multiply(y, y))

    def expected(emit, x):
        y = emit(relax.op.add(emit(relax.op.abs(x)), x))
        return emit(relax.op.multiply(y, y))

    after = _DoubleRelu(graph(before, (2, 4))).rewrite()
    tvm.ir.assert_structural_equal(after, graph(expected, (2, 4)))
    relax.analysis.well_formed(after)


def test_uses_count_outputs_and_look_through_aliases():
    def body(emit, x):
        y = emit(relax.op.nn.relu(x))
        z = emit(relax.op.add(y, y))
        return z, y

    function = graph(body, (2, 4))["main"]
    uses = count_uses(function)
    variables = {str(v.name): v for v, _ in bindings_of(function)}
    assert [uses[variables[n]] for n in ("lv", "lv1")] == [3, 1]
    assert uses[function.params[0]] == 1


def test_used_vars_finds_operands_in_tuples_and_ignores_constants():
    x, y = (relax.Var(n, relax.TensorType([2], "float32")) for n in "xy")
    call = relax.op.concat([x, const(np.ones(2)), y, x])
    assert [str(v.name) for v in used_vars(call)] == ["x", "y", "x"]


def test_replacing_the_output_by_a_parameter_is_well_formed():
    class Identity(DataflowRewriter):
        def visit_binding(self, var, value):
            return self.lookup(value.args[0]) if isinstance(value, relax.Call) else None

    after = Identity(graph(lambda emit, x: emit(relax.op.nn.relu(x)), (2, 4))).rewrite()
    relax.analysis.well_formed(after)
    assert op_names(after) == []


def test_control_flow_is_refused():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(dtype="float32", ndim=1))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(builder.match_cast(x, relax.TensorType([3], "float32")))
        builder.emit_func_output(y)
    with pytest.raises(ModelError, match="straight-line"):
        list(bindings_of(builder.finalize()["main"]))
