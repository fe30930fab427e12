"""ONNX to L0: the float graph in Relax, with symbolic batch and ONNX node names as layer names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from tvm import relax, tirx

from tvmquant.errors import ModelError, UnsupportedModelError
from tvmquant.frontend import (  # noqa: F401 (they register converters)
    converters_activation,
    converters_blocks,
    converters_cast,
    converters_cumulative,
    converters_dynamic,
    converters_einsum,
    converters_index,
    converters_layout,
    converters_linear,
    converters_logic,
    converters_math,
    converters_norm,
    converters_pool,
    converters_quantize,
    converters_recurrent,
    converters_resize,
)
from tvmquant.frontend.branches import take_branch
from tvmquant.frontend.context import Context, NonFiniteError, Value
from tvmquant.frontend.dialects import rewrite_nodes
from tvmquant.frontend.dimensions import (
    Array,
    Batch,
    Shape,
    UnsupportedNodeError,
    is_symbolic,
)
from tvmquant.frontend.fold import NOT_FOLDED, evaluate_constant
from tvmquant.frontend.function_bodies import SPELLED_OUT, spell_out
from tvmquant.frontend.input_types import InputType
from tvmquant.frontend.node import Node
from tvmquant.frontend.prepare import Prepared, live_nodes, name_nodes
from tvmquant.frontend.quantized_tensor import QuantizedTensor
from tvmquant.frontend.ranged_tensor import RangedTensor
from tvmquant.frontend.registry import CONVERTERS
from tvmquant.frontend.results import check_batches, returned
from tvmquant.frontend.shape_ops import evaluate
from tvmquant.frontend.stored_integers import moved_by, stored_by
from tvmquant.frontend.support import UnsupportedNode, find_unsupported, raise_unsupported
from tvmquant.frontend.value_types import type_of
from tvmquant.graph import Graph

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Importer:
    """One attempt to import a model."""

    model: Prepared
    context: Context
    found: list[UnsupportedNode]
    nodes: dict[str, Node] = field(default_factory=dict)  # in order, those of branches too

    def run(self) -> None:
        """Convert every node but those found before; what depends on a failed one is skipped."""
        self._convert_nodes(self.model.nodes)

    def _convert_nodes(self, nodes: Sequence[Node]) -> None:
        values = self.context.values
        skipped = {node.name for node in self.found}
        for node in nodes:
            self.nodes[node.name] = node
            condition = values.get(node.inputs[0]) if node.op_type == "If" else None
            if isinstance(condition, np.ndarray):
                self._convert_branch(node, condition)
                continue
            if node.name in skipped or any(name not in values for name in node.inputs):
                continue
            self.context.node = node
            try:
                if self._is_spelled_out(node):
                    self._convert_definition(node)
                    continue
                results = self._convert(node)
            except NonFiniteError as error:
                raise ModelError(
                    f"model {self.model.name!r}: {error}, used by node {node.name!r} "
                    f"({node.op_type}){self._origin(node)}; such weights cannot be quantized, "
                    "check the training or the export"
                ) from None
            except UnsupportedNodeError as error:
                self.found.append(UnsupportedNode(node.name, node.op_type, str(error)))
            except ModelError:
                raise
            except Exception as error:  # TVM's type inference raises errors of many types
                _LOG.debug("node %s", node.name, exc_info=True)
                last = (str(error).strip() or repr(error)).splitlines()[-1]
                reason = f"what it reads does not fit together, or TVM cannot compute it: {last}"
                self.found.append(UnsupportedNode(node.name, node.op_type, reason))
            else:
                values.update(zip(node.outputs, results, strict=False))
                values[""] = None

    def _convert_branch(self, node: Node, condition: Array) -> None:
        """Convert the branch that an ``If`` of a known condition takes."""
        if is_symbolic(condition) or condition.size != 1:
            reason = "its condition is not one constant, or depends on the batch size"
            self.found.append(UnsupportedNode(node.name, node.op_type, reason))
            return
        self._convert_inner(node, take_branch(node, bool(np.all(condition))), self.model.opsets)

    def _is_spelled_out(self, node: Node) -> bool:
        values = [self.context.values[name] for name in node.inputs]
        known = all(value is None or isinstance(value, np.ndarray) for value in values)
        return node.op_type in SPELLED_OUT and not known

    def _convert_definition(self, node: Node) -> None:
        """Convert the nodes that ONNX defines an operator by."""
        types = [type_of(self.context, index) for index in range(len(node.inputs))]
        given = (name for each in self.model.nodes for name in each.outputs)
        protos, opsets = spell_out(node, types, {*given, *self.context.values})
        self._convert_inner(node, protos, opsets)

    def _convert_inner(
        self, node: Node, protos: Sequence[onnx.NodeProto], opsets: Mapping[str, int]
    ) -> None:
        """Convert nodes that stand for another one and compute its outputs."""
        values = self.context.values
        names = {each.name for each in self.model.nodes} | self.nodes.keys()
        named = name_nodes(protos, opsets, names, f"{node.name}/")
        nodes = live_nodes(named, node.outputs)
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        known = {name: array for name, array in arrays.items() if not is_symbolic(array)}
        branch = rewrite_nodes(nodes, known, node.outputs, names={*names, *values})
        arrays.update(branch.constants)
        values.update(branch.constants)
        ranks = {name: array.ndim for name, array in arrays.items()}
        self.found.extend(find_unsupported(self.model.name, branch.nodes, ranks, branch.refused))
        self._convert_nodes(branch.nodes)

    def _convert(self, node: Node) -> tuple[Value, ...]:
        constant = node.constant_value()
        if constant is not None:
            return (constant,)
        inputs = [self.context.values[name] for name in node.inputs]
        arrays = [value for value in inputs if value is None or isinstance(value, np.ndarray)]
        if len(arrays) == len(inputs):
            if not any(is_symbolic(array) for array in arrays):
                if node.op_type not in NOT_FOLDED:
                    self._note_stored(node, arrays)
                    return evaluate_constant(node, arrays)
            elif node.op_type != "ConstantOfShape":
                return (evaluate(node, arrays),)
        if node.op_type not in CONVERTERS:
            raise UnsupportedNodeError("the operator is supported on constants and shapes only")
        results = CONVERTERS[node.op_type](self.context, node)
        results = results if isinstance(results, tuple) else (results,)
        if not self.context.moves_integers():
            return results
        source = next(v for v in inputs if isinstance(v, QuantizedTensor | RangedTensor))
        return tuple(
            replace(source, real=result) if isinstance(result, relax.Var) else result
            for result in results
        )

    def _note_stored(self, node: Node, arrays: list[Array | None]) -> None:
        """Remember the integers of a constant that the file stores as such."""
        stored = stored_by(node, arrays)
        known = self.context.stored.get(node.inputs[0]) if node.inputs else None
        if known is not None:
            stored = moved_by(node, known, arrays)
        if stored is not None:
            self.context.stored[node.outputs[0]] = stored

    def _origin(self, node: Node) -> str:
        """Name the initialiser that a computed constant got its NaN or infinity from."""
        producers = {name: each for each in self.nodes.values() for name in each.outputs}
        pending = list(node.inputs)
        while pending:
            name = pending.pop()
            if name in producers:
                pending.extend(producers[name].inputs)
            elif name in self.model.constants and name not in node.inputs:
                array = self.model.constants[name]
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    return f" and computed from initialiser {name!r}"
        return ""


def import_rebound(
    model: Prepared, inputs: Sequence[InputType], *, requantize: bool = False
) -> Graph:
    """Convert a model whose batch is a number for the number that the inputs have instead.

    Raises
    ------
    UnsupportedModelError
        If the model makes use of its batch, or as `import_model` does.
    """
    declared, batch = inputs[0].declared_batch, inputs[0].shape[0]
    try:
        graph = import_model(model, inputs, assumed_batch=declared, requantize=requantize)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"the batch of {declared} that the file fixes cannot become {batch}: {error}\n"
            "leave the batch as it is, or export the model with a dynamic batch"
        ) from None
    (symbol,) = {dim for dim in graph.main.params[0].ty.shape.values if isinstance(dim, tirx.Var)}
    return graph.with_module(relax.transform.BindSymbolicVars({symbol: batch})(graph.module))


def import_model(
    model: Prepared,
    inputs: Sequence[InputType],
    *,
    assumed_batch: int | None = None,
    requantize: bool = False,
) -> Graph:
    """Convert a model whose operators are supported.

    Parameters
    ----------
    model : Prepared
    inputs : sequence of InputType
    assumed_batch : int, optional
        The batch that the file fixes, where the graph shall leave it open.
    requantize : bool
        As of `load_onnx`.

    Raises
    ------
    UnsupportedModelError
        If nodes cannot be imported because of the shapes they meet, naming all of them; or if the
        batch cannot be assumed.
    ModelError
        If weights are not finite.
    """
    symbolic = assumed_batch is not None or any(item.batch == "symbolic" for item in inputs)
    batch = tirx.Var("N", "int64") if symbolic else None
    builder = relax.BlockBuilder()
    context = Context(builder, batch, assumed_batch, requantize=requantize, own=model.own)
    parameters = []
    for item in inputs:
        own_batch = assumed_batch is not None or item.batch == "symbolic"
        first: Shape = (Batch(),) if own_batch else item.shape[:1]
        shape = context.expression((*first, *item.shape[1:]))
        parameter = relax.Var(item.name, relax.TensorType(shape, item.dtype))
        parameters.append(parameter)
        context.values[item.name] = parameter
    context.values.update(model.constants)
    found: list[UnsupportedNode] = []
    importer = _Importer(model, context, found)
    results: list[relax.Var] = []
    failure: ModelError | None = None
    # TVM complains on stderr about a builder that an exception leaves half-way
    with builder.function("main", parameters):
        with builder.dataflow():
            try:
                importer.run()
                if not found:
                    results = [
                        builder.emit_output(returned(context, value)) for value in model.outputs
                    ]
            except ModelError as error:
                failure = error
        builder.emit_func_output(results[0] if len(results) == 1 else relax.Tuple(results))
    if failure is not None:
        raise failure
    position = {name: index for index, name in enumerate(importer.nodes)}
    raise_unsupported(model.name, sorted(found, key=lambda node: position[node.name]))
    if assumed_batch is not None:
        check_batches(model, [context.shape(result) for result in results])
    return Graph(
        module=relax.transform.DeadCodeElimination()(builder.get()),
        level="L0",
        name=model.name,
        input_names=tuple(item.name for item in inputs),
        output_names=tuple(value.name for value in model.outputs),
    )
