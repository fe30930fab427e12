"""A network cut where it rounds to integers: the exact ones, and an ONNX model that reads these."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import tvm
from onnx import TensorProto, helper
from tvm import relax

from tvmquant.export.network import WrittenEdge
from tvmquant.export.reading import Reading


def given_name(value: str) -> str:
    """Return the name of the input that stands for a value behind its cut."""
    return f"{value}/given"


def cut_model(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """Return a model that computes each of the values from what it is given for those before.

    Parameters
    ----------
    model : onnx.ModelProto
    values : sequence of str
        Float tensors that nodes compute. They are the outputs, and under `given_name` inputs.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    known = set(values)
    for node in cut.graph.node:
        for index, name in enumerate(node.input):
            if name in known:
                node.input[index] = given_name(name)
    read = {name for node in cut.graph.node for name in node.input}
    inputs = [name for name in map(given_name, values) if name in read]
    cut.graph.input.extend(_floats(inputs))
    del cut.graph.output[:]
    cut.graph.output.extend(_floats(values))
    return cut


def _floats(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]


class _Exposing(Reading):
    def __init__(self, module: tvm.IRModule, edges: Sequence[WrittenEdge]) -> None:
        super().__init__(module)
        # what stands for each, known when the outputs are made
        self.exposed = {relax.Var(edge.id, edge.var.ty): edge for edge in edges}

    def results(self) -> list[relax.Expr]:
        return [*super().results(), *self.exposed]

    def visit_output(self, expr: relax.Expr) -> relax.Expr:
        edge = self.exposed.get(expr)
        if edge is not None:
            rounded = self.rounded_for(edge.reader, edge.var) if edge.reader is not None else None
            self.values[expr] = self.values[edge.var] if rounded is None else rounded
        return super().visit_output(expr)


def exposing(module: tvm.IRModule, edges: Sequence[WrittenEdge]) -> tvm.IRModule:
    """Round an annotated (L1) graph, and let it give what it rounds to on the way too.

    Parameters
    ----------
    module : tvm.IRModule
    edges : sequence of WrittenEdge
        They follow the outputs of the graph, as real numbers.
    """
    return _Exposing(module, edges).rewrite()
