"""Layer names survive Relax passes; fingerprints see everything but identity."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tvmquant.errors import ModelError
from tvmquant.graph import Graph, layer_name
from tvmquant.ir.rewriter import make_span, with_span


def build(scale=2.0, layer="scaled", tuple_output=False):
    batch = tirx.Var("N", "int64")
    x = relax.Var("x", relax.TensorType([batch, 3], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            call = relax.op.multiply(x, relax.const(np.full(3, scale, np.float32)))
            scaled = builder.emit(with_span(call, layer))
            result = builder.emit_output(with_span(relax.op.nn.relu(scaled), "act"))
            second = builder.emit_output(scaled)
        builder.emit_func_output(relax.Tuple([result, second]) if tuple_output else result)
    outputs = ("y", "s") if tuple_output else ("y",)
    return Graph(builder.get(), "L0", "net", ("x",), outputs)


def names(function):
    found = []
    relax.analysis.post_order_visit(
        function, lambda e: found.append(layer_name(e)) if isinstance(e, relax.Call) else None
    )
    return found


def test_signature():
    graph = build(tuple_output=True)
    assert graph.inputs == [("x", (None, 3), "float32")]
    assert graph.outputs == [("y", (None, 3), "float32"), ("s", (None, 3), "float32")]
    assert build().outputs == [("y", (None, 3), "float32")]


def test_layer_name_of_a_call_without_span():
    x = relax.Var("x", relax.TensorType([3], "float32"))
    assert layer_name(relax.op.nn.relu(x)) == ""
    assert layer_name(with_span(relax.op.nn.relu(x), "a/b.c")) == "a/b.c"
    assert make_span("n").source_name.name == "n"


def test_with_span_keeps_everything_else():
    x = relax.Var("x", relax.TensorType([1, 3, 4, 4], "float32"))
    call = relax.op.nn.max_pool2d(x, (2, 2), (2, 2))
    tvm.ir.assert_structural_equal(with_span(call, "pool"), call)


@pytest.mark.parametrize(
    "transform",
    [
        relax.transform.Normalize(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.BindSymbolicVars({"N": 4}),
    ],
    ids=lambda transform: transform.info.name,
)
def test_names_survive(transform):
    module = transform(build().module)
    assert names(module["main"]) == ["scaled", "act"]


def test_with_module():
    graph = build()
    bound = graph.with_module(relax.transform.BindSymbolicVars({"N": 4})(graph.module), "L1")
    assert (bound.level, bound.name, graph.level) == ("L1", "net", "L0")
    assert bound.inputs == [("x", (4, 3), "float32")]
    assert bound.with_module(graph.module).level == "L1"


def test_fingerprint():
    reference = build().fingerprint()
    assert reference == build().fingerprint()
    assert len(reference) == 64
    assert reference != build(scale=3.0).fingerprint()
    assert reference != build(layer="other").fingerprint()
    assert reference != build(tuple_output=True).fingerprint()
    assert reference != build().with_module(build().module, "L1").fingerprint()


class FakeGraph:
    item_inputs, fixed_batch = Graph.item_inputs, Graph.fixed_batch

    def __init__(self, *shapes):
        self.inputs = [(f"input{i}", shape, "float32") for i, shape in enumerate(shapes)]


def test_what_inputs_take_of_one_item():
    two = FakeGraph((None, 3, None, 8), (None, 2)).item_inputs()
    assert [(spec.name, spec.shape) for spec in two] == [
        ("input0", (3, None, 8)), ("input1", (2,))
    ]  # fmt: skip
    with pytest.raises(ModelError, match="scalar"):
        FakeGraph(()).item_inputs()


def test_the_batch_that_a_model_fixes():
    assert FakeGraph((None, 3)).fixed_batch() is None
    assert FakeGraph((10, 3), (10, 4)).fixed_batch() == 10
    with pytest.raises(ModelError, match=r"'input1' \(4, 3\)"):
        FakeGraph((10, 3), (4, 3)).fixed_batch()


def test_what_follows_from_a_graph_is_computed_once_for_its_arguments():
    calls = []

    def scaled(graph, factor):
        calls.append((graph, factor))
        return [factor]

    graph = build()
    assert graph.once(scaled, 2) is graph.once(scaled, 2)
    assert graph.once(scaled, 3) == [3]
    assert calls == [(graph, 2), (graph, 3)]
    assert graph == build().with_module(graph.module)  # what is known of it is no part of it


def test_what_fails_is_tried_again():
    answers = iter([ModelError("not yet"), None])

    def fails_once(_graph):
        if (error := next(answers)) is not None:
            raise error
        return "done"

    graph = build()
    with pytest.raises(ModelError):
        graph.once(fails_once)
    assert graph.once(fails_once) == "done"
