"""The graph that every stage of tvmquant takes and returns: a Relax module with names and a level.

Levels: ``L0`` float, ``L1`` annotated with fake_quant, ``L2`` integer, ``L3`` kernels.

A layer's identity is the name of the ONNX node it came from. It travels in the span of the Relax
call, which Relax's passes preserve and which is no part of structural equality.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, TypeVar

import tvm
from tvm import relax, tirx

from tvmquant.data.items import InputSpec
from tvmquant.errors import ModelError

Signature = list[tuple[str, tuple[int | None, ...], str]]
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Graph:
    """A network as a Relax module with one function, ``main``, of one dataflow block.

    Parameters
    ----------
    module : tvm.IRModule
        Parameters of ``main`` are the model's inputs, weights are constants. The first dimension
        of inputs is a variable shared by all of them, or a number if the model fixes it.
    level : str
        ``"L0"``, ``"L1"``, ``"L2"`` or ``"L3"``.
    name : str
        The model's name, by default the stem of its file.
    input_names, output_names : tuple of str
        As in the ONNX model, in the order of ``main``'s parameters and results.
    """

    module: tvm.IRModule
    level: str
    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def with_module(self, module: tvm.IRModule, level: str | None = None) -> Graph:
        """Return the graph with another module, and another level if one is given."""
        return replace(self, module=module, level=level or self.level)

    def once(
        self,
        function: Callable[Concatenate[Graph, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Return what a function makes of the graph, calling it at most once for its arguments.

        A graph never changes, so what follows from it alone stays true. The result is kept as long
        as the graph is and must not be changed either.

        Parameters
        ----------
        function : callable
            Takes the graph, then the arguments; of a module, so that all callers name the same one.
        *args, **kwargs
            Hashable.
        """
        key = (function, args, frozenset(kwargs.items()))
        if key not in self._known:
            self._known[key] = function(self, *args, **kwargs)
        known: Result = self._known[key]
        return known

    @cached_property
    def _known(self) -> dict[Any, Any]:
        return {}

    @property
    def main(self) -> relax.Function:
        """The function ``main`` of the module."""
        return self.module["main"]

    @property
    def inputs(self) -> Signature:
        """(name, shape, dtype) of every input; None stands for the symbolic batch."""
        types = [parameter.ty for parameter in self.main.params]
        return [_describe(name, ty) for name, ty in zip(self.input_names, types, strict=True)]

    @property
    def outputs(self) -> Signature:
        """(name, shape, dtype) of every output; None stands for a symbolic dimension."""
        result = self.main.ret_ty
        types = list(result.fields) if isinstance(result, tvm.ir.TupleType) else [result]
        return [_describe(name, ty) for name, ty in zip(self.output_names, types, strict=True)]

    def item_inputs(self) -> tuple[InputSpec, ...]:
        """Return what each input takes of one item, without the batch; None where symbolic.

        Raises
        ------
        ModelError
            When an input has no batch axis.
        """
        for name, shape, _ in self.inputs:
            if not shape:
                raise ModelError(f"the input {name!r} is a scalar; expected a batch axis")
        return tuple(InputSpec(name, shape[1:], dtype) for name, shape, dtype in self.inputs)

    def fixed_batch(self) -> int | None:
        """Return the batch that the model fixes; None where it takes any.

        Raises
        ------
        ModelError
            When inputs differ in it.
        """
        batches = {shape[0] if shape else None for _, shape, _ in self.inputs}
        if len(batches) > 1:
            found = ", ".join(
                f"{name!r} {tuple('any' if n is None else n for n in shape)}"
                for name, shape, _ in self.inputs
            )
            raise ModelError(
                f"the inputs differ in their first dimension, the batch: {found}; expected the "
                "same, so that data can be fed item by item"
            )
        return next(iter(batches), None)

    def fingerprint(self) -> str:
        """Return the SHA-256 of structure, attributes, layer names and constants, in hexadecimal.

        Equal for graphs imported from equal files, in any process.
        """
        return self.once(_fingerprint)


def layer_name(call: relax.Call) -> str:
    """Return the name of the ONNX node that ``call`` came from, or ``""`` if it has none."""
    return "" if call.span is None else str(call.span.source_name.name)


def _fingerprint(graph: Graph) -> str:
    digest = hashlib.sha256(graph.level.encode())
    for part in (graph.input_names, graph.output_names):
        digest.update("\0".join(part).encode() + b"\1")
    digest.update(graph.module.script(show_meta=False).encode())

    def visit(node: relax.Expr) -> None:
        if isinstance(node, relax.Call):
            digest.update(layer_name(node).encode() + b"\0")
        elif isinstance(node, tvm.ir.GenericConst):
            value = node.value.numpy()
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(value.tobytes())

    for variable in sorted(graph.module.get_global_vars(), key=lambda var: var.name_hint):
        function = graph.module[variable]
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return digest.hexdigest()


def _describe(name: str, ty: relax.TensorType) -> tuple[str, tuple[int | None, ...], str]:
    dims = [
        int(dim.value) if isinstance(dim, tirx.IntImm) else None for dim in list(ty.shape.values)
    ]
    return name, tuple(dims), str(ty.dtype)
