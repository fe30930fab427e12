"""Graphs inside of nodes: the branches of an ``If``, of which one is put in the node's place.

Before::

    y = If(c)   then: a = Relu(x)   else: b = Neg(x)        c is known to be true

After::

    y/a = Relu(x)
    y = Identity(y/a)

The values of such a graph are seen inside of it only, and read what is defined around it. Once
`separate_scopes` has given every value of a file a name of its own, the nodes of a branch may stand
anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

from tvmquant.errors import ModelError
from tvmquant.frontend.node import Node


def subgraphs(proto: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds in its attributes."""
    for attribute in proto.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside of it."""
    yield graph
    for proto in graph.node:
        for inner in subgraphs(proto):
            yield from all_graphs(inner)


def read_names(proto: onnx.NodeProto) -> set[str]:
    """Return the names a node reads: its inputs, and what graphs inside of it read from outside.

    Scopes must be separate.
    """
    names = set(proto.input)
    for graph in subgraphs(proto):
        names.update(value.name for value in graph.output)
        for inner in graph.node:
            names |= read_names(inner)
        names.difference_update(_defined(graph))
    return names


def separate_scopes(graph: onnx.GraphProto) -> None:
    """Rename values of the graphs inside of ``graph``, in place, so that no two share a name.

    The values of ``graph`` itself, and what is unique already, keep their names.
    """
    taken = {""} | set(_defined(graph))
    for proto in graph.node:
        for inner in subgraphs(proto):
            _separate(inner, {}, taken)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    for proto in graph.node:
        yield from proto.output


def _separate(graph: onnx.GraphProto, outer: Mapping[str, str], taken: set[str]) -> None:
    renamed = dict(outer)

    def define(name: str) -> str:
        free, suffix = name, 0
        while name and free in taken:
            suffix += 1
            free = f"{name}_{suffix}"
        taken.add(free)
        renamed[name] = free
        return free

    for value in graph.input:
        value.name = define(value.name)
    for tensor in graph.initializer:
        listed = tensor.name in renamed and any(renamed[tensor.name] == v.name for v in graph.input)
        tensor.name = renamed[tensor.name] if listed else define(tensor.name)
    for proto in graph.node:
        proto.input[:] = [renamed.get(name, name) for name in proto.input]
        for inner in subgraphs(proto):
            _separate(inner, renamed, taken)
        proto.output[:] = [define(name) for name in proto.output]
    for value in graph.output:
        value.name = renamed.get(value.name, value.name)


def take_branch(node: Node, condition: bool) -> list[onnx.NodeProto]:
    """Return the nodes of the branch that an ``If`` takes, ending in its outputs.

    Parameters
    ----------
    node : Node
        An ``If`` of a file whose scopes are separate.
    condition : bool
        Whether the branch is ``then_branch``.

    Raises
    ------
    ModelError
        If the node has no such branch, or one with fewer outputs than the node.
    """
    wanted = "then_branch" if condition else "else_branch"
    branch = next((a.g for a in node.proto.attribute if a.name == wanted and a.HasField("g")), None)
    if branch is None or len(branch.output) < len(node.outputs):
        raise ModelError(
            f"node {node.name!r} (If): its {wanted} is missing, or has fewer outputs than the "
            "node; the file is damaged"
        )
    ends = [
        onnx.helper.make_node("Identity", [value.name], [name])
        for value, name in zip(branch.output, node.outputs, strict=False)
        if name
    ]
    return [*branch.node, *ends]


def computed_from(names: Iterable[str], nodes: Sequence[Node]) -> list[str]:
    """Return the names that values are computed from and that no node computes, sorted."""
    needed = set(names)
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed |= read_names(node.proto)
    computed = {output for node in nodes for output in node.outputs}
    return sorted(needed - computed - {""})
