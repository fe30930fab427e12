"""Operators that ONNX spells out in others: the nodes of its definition are put in their place.

Before::

    y = SwiGLU(a, b)

After::

    y/g = Swish(a)
    y = Mul(y/g, b)

Some definitions depend on the types of the inputs, which are therefore known by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from tvmquant.frontend.branches import all_graphs, separate_scopes
from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node

# Those of the operators with a definition that no converter imports as they are.
SPELLED_OUT = frozenset(
    {
        "AffineGrid",
        "Attention",
        "CausalConvWithState",
        "CenterCropPad",
        "LinearAttention",
        "NegativeLogLikelihoodLoss",
        "RotaryEmbedding",
        "SoftmaxCrossEntropyLoss",
        "SwiGLU",
    }
)


def spell_out(
    node: Node, types: Sequence[onnx.TypeProto], taken: Iterable[str]
) -> tuple[list[onnx.NodeProto], dict[str, int]]:
    """Return the nodes that compute what a node does, and the opsets that they are of.

    Parameters
    ----------
    node : Node
        Of an operator of `SPELLED_OUT`.
    types : sequence of onnx.TypeProto
        Of its inputs; empty where one is left out.
    taken : iterable of str
        Names of values, none of which the new nodes give to a value of their own.

    Raises
    ------
    UnsupportedNodeError
        If ONNX defines the operator for other inputs only.
    """
    body = _definition(node, types)
    graph = onnx.GraphProto(node=body.node)
    _bind_attributes(graph, _attributes(node, body))
    for name in body.input:
        graph.input.add(name=name)
    separate_scopes(graph)
    prefix, used = f"{node.name}/", set(taken)
    while any(name.startswith(prefix) for name in used):
        prefix += "/"
    names = {"": ""}
    for position, name in enumerate(body.output):
        given = node.outputs[position] if position < len(node.outputs) else ""
        names[name] = given or f"{prefix}{name}"
    for position, name in enumerate(body.input):
        names[name] = node.inputs[position] if position < len(node.inputs) else ""
    _rename(graph, names, prefix)
    return list(graph.node), {entry.domain: int(entry.version) for entry in body.opset_import}


def _definition(node: Node, types: Sequence[onnx.TypeProto]) -> onnx.FunctionProto:
    """Return the operator's definition of the newest opset that the model knows."""
    body = onnx.FunctionProto()
    try:
        schema = onnx.defs.get_schema(node.proto.op_type, node.opset, node.proto.domain)
        fixed = schema.function_opset_versions
        typed = schema.context_dependent_function_opset_versions
        version = max(v for v in (*fixed, *typed) if v <= node.opset)
        if version in fixed:
            text = schema.get_function_with_opset_version(version)
        else:
            text = schema.get_context_dependent_function_with_opset_version(
                version, node.proto.SerializeToString(), [t.SerializeToString() for t in types]
            )
        body.ParseFromString(text)
    except Exception as error:  # as ONNX's C++ raises it
        raise UnsupportedNodeError(f"ONNX does not define it for these inputs: {error}") from None
    return body


def _attributes(node: Node, body: onnx.FunctionProto) -> dict[str, onnx.AttributeProto]:
    schema = onnx.defs.get_schema(node.proto.op_type, node.opset, node.proto.domain)
    defaults = {name: a.default_value for name, a in schema.attributes.items()}
    found = {name: value for name, value in defaults.items() if value.name}
    found.update((attribute.name, attribute) for attribute in body.attribute_proto)
    found.update((attribute.name, attribute) for attribute in node.proto.attribute)
    return found


def _bind_attributes(graph: onnx.GraphProto, known: Mapping[str, onnx.AttributeProto]) -> None:
    """Replace references to attributes of the operator by their values, in place."""
    for part in list(all_graphs(graph)):
        for proto in part.node:
            bound = []
            for attribute in proto.attribute:
                value = onnx.AttributeProto()
                value.CopyFrom(known.get(attribute.ref_attr_name, attribute))
                value.name = attribute.name
                if not attribute.ref_attr_name or attribute.ref_attr_name in known:
                    bound.append(value)
            del proto.attribute[:]
            proto.attribute.extend(bound)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str], prefix: str) -> None:
    """Rename all values, in place: those that are not in ``names`` get a prefix."""

    def renamed(name: str) -> str:
        return names.get(name, f"{prefix}{name}")

    for part in list(all_graphs(graph)):
        for value in (*part.input, *part.initializer, *part.output):
            value.name = renamed(value.name)
        for proto in part.node:
            proto.input[:] = [renamed(name) for name in proto.input]
            proto.output[:] = [renamed(name) for name in proto.output]
