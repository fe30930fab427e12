"""A network cut where it rounds to integers: the exact ones, and an ONNX model that reads these."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import tvm
from onnx import TensorProto, helper
from tvm import relax

from tvmquant.passes.insert_requantize import Integerizer


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


class _Exposing(Integerizer):
    def __init__(self, module: tvm.IRModule, exposed: Sequence[relax.Var]) -> None:
        super().__init__(module)
        self.exposed = exposed

    def results(self) -> list[relax.Expr]:
        return [*super().results(), *self.exposed]


def exposing(module: tvm.IRModule, tensors: Sequence[relax.Var]) -> tvm.IRModule:
    """Round an annotated (L1) graph, and let it give tensors that it holds too.

    Parameters
    ----------
    module : tvm.IRModule
    tensors : sequence of Var
        What fake_quants of the graph give. They follow its outputs, as real numbers.
    """
    return _Exposing(module, tensors).rewrite()
