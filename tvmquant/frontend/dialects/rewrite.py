"""Every quantized dialect in one form: integers between QuantizeLinear and DequantizeLinear.

Before::

    y = QLinearConv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero)

After::

    a = DequantizeLinear(x, x_scale, x_zero)
    b = DequantizeLinear(w, w_scale, w_zero)
    c = Conv(a, b)
    y = QuantizeLinear(c, y_scale, y_zero)

The float operator has the name of the node that it came from, the others have names derived from
it. Where a dialect rounds in another way than QuantizeLinear, which rounds ties to even, the module
of its operators says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import onnx

from tvmquant.errors import ModelError
from tvmquant.frontend.branches import all_graphs, subgraphs
from tvmquant.frontend.dialects import (  # noqa: F401 (they register rewritings)
    fused_matmul,
    integer_layers,
    qonnx,
    qonnx_trunc,
    qoperator_linear,
    qoperator_pointwise,
    qoperator_pool,
)
from tvmquant.frontend.dialects.draft import Draft
from tvmquant.frontend.dialects.parameters import QUANTIZERS, parameter_fault
from tvmquant.frontend.dialects.registry import RULES, Rule
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.prepare import Prepared, live_nodes


@dataclass(frozen=True)
class Rewritten:
    """Nodes in the form QDQ.

    Parameters
    ----------
    nodes : tuple of Node
    constants : dict of str to array
        Those given, and new ones.
    refused : dict of str to str
        Names of nodes that have no such form, which stay as they are, or whose scales, zero points
        or integers are not valid, and why.
    """

    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    refused: dict[str, str]


def rewrite_model(model: Prepared) -> tuple[Prepared, dict[str, str]]:
    """Bring the nodes of a model to the form QDQ.

    Returns
    -------
    (Prepared, dict of str to str)
        The model, and why nodes could not be rewritten, by their names.

    Raises
    ------
    ModelError
        If a node is damaged.
    """
    outputs = [value.name for value in model.outputs]
    result = rewrite_nodes(model.nodes, model.constants, outputs, inputs=model.inputs)
    return replace(model, nodes=result.nodes, constants=result.constants), result.refused


def rewrite_nodes(
    nodes: Sequence[Node],
    constants: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    names: Collection[str] = (),
) -> Rewritten:
    """Bring nodes to the form QDQ.

    Parameters
    ----------
    nodes : sequence of Node
        In topological order.
    constants : mapping of str to array
    outputs : sequence of str
        Values that are read afterwards.
    inputs : sequence of onnx.ValueInfoProto
        Values that are given, where their types are known.
    names : collection of str
        Of other values and nodes of the model.

    Raises
    ------
    ModelError
        If a node is damaged.
    """
    values = {"", *constants, *outputs, *names, *(value.name for value in inputs)}
    for node in nodes:
        values.update(node.inputs)
        values.update(node.outputs)
        for graph in (inner for each in subgraphs(node.proto) for inner in all_graphs(each)):
            values.update(value.name for value in graph.input)
            values.update(name for proto in graph.node for name in proto.output)
    taken = {*names, *(node.name for node in nodes)}
    draft = Draft(nodes, constants, inputs, outputs, values, taken)
    refused: dict[str, str] = {}
    for node in nodes:
        if node.name in draft.done:
            continue
        rule = RULES.get(node.op_type)
        if rule is None:
            draft.keep(node)
            continue
        _check_inputs(node, rule)
        taken.discard(node.name)  # the float operator takes it
        try:
            with _attributes_of(node):
                rule.rewriting(draft, node)
        except UnsupportedNodeError as error:
            draft.keep(node)
            refused[node.name] = str(error)
        taken.add(node.name)
    written = live_nodes(draft.nodes, outputs)
    for node in (each for each in written if each.op_type in QUANTIZERS):
        with _attributes_of(node):
            fault = parameter_fault(draft, node)
        if fault is not None:
            refused[node.name] = fault
    return Rewritten(tuple(written), draft.constants, refused)


@contextmanager
def _attributes_of(node: Node) -> Iterator[None]:
    """Name a node that has an attribute of another type than is read."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) has an attribute of another type than its "
            f"operator: {error}; the file is damaged"
        ) from None


def _check_inputs(node: Node, rule: Rule) -> None:
    """Reject a node that lacks inputs, which ONNX's checker, knowing no dialects, lets pass."""
    count = len(node.inputs)
    missing = [
        index
        for index in range(rule.fewest)
        if index not in rule.optional and (index >= count or not node.inputs[index])
    ]
    if missing or count > rule.most or len(node.proto.output) != 1:
        found = f"input {missing[0]} is missing" if missing else f"it has {count} inputs"
        expected = f"{rule.fewest} to {rule.most} inputs and one output"
        raise ModelError(
            f"node {node.name!r} ({node.op_type}): {found}, expected {expected}; the file is "
            "damaged"
        )
