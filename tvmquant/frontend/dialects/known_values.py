"""Values that are known at import: initialisers, and what nodes compute from these alone."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from tvmquant.frontend.branches import read_names, subgraphs
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.fold import NOT_FOLDED, evaluate_constant
from tvmquant.frontend.node import Node


class KnownValues:
    """Arrays by name, computed when they are asked for.

    Parameters
    ----------
    constants : dict of str to array
        Initialisers; those added to it later count too.
    """

    def __init__(self, constants: dict[str, Array]) -> None:
        self._constants = constants
        self._computed: dict[str, Array] = {}
        self._producers: dict[str, Node] = {}
        self._varying: set[str] = set()  # what depends on the model's inputs

    def add(self, nodes: Iterable[Node]) -> None:
        """Take nodes, in topological order, for what computes their outputs from now on."""
        for node in nodes:
            outputs = [name for name in node.outputs if name]
            if any(self._varies(name) for name in read_names(node.proto)):
                self._varying.update(outputs)
            else:
                self._varying.difference_update(outputs)
            self._producers.update(dict.fromkeys(outputs, node))

    def producer(self, name: str) -> Node | None:
        """Return the node that computes a value, None for initialisers and inputs."""
        return self._producers.get(name)

    def array(self, name: str) -> Array | None:
        """Return a value, None if it is left out or depends on the model's inputs."""
        if self._varies(name):
            return None
        unknown = {""}
        pending = [name]
        while pending:
            current = pending[-1]
            node = self._producers.get(current)
            if current in unknown or self._have(current):
                pending.pop()
            elif node is None or not _is_foldable(node):
                unknown.add(current)
            else:
                inputs = [each for each in node.inputs if each]
                open_ = [each for each in inputs if each not in unknown and not self._have(each)]
                if open_:
                    pending.extend(open_)
                elif not unknown.isdisjoint(inputs) or not self._evaluate(node):
                    unknown.add(current)
        return self._get(name)

    def _varies(self, name: str) -> bool:
        if not name or self._have(name):
            return False
        return name in self._varying or name not in self._producers

    def _have(self, name: str) -> bool:
        return name in self._constants or name in self._computed

    def _get(self, name: str) -> Array | None:
        found = self._constants.get(name)
        return self._computed.get(name) if found is None else found

    def _evaluate(self, node: Node) -> bool:
        """Compute the outputs of a node; False if that fails, for which the import has words."""
        try:
            constant = node.constant_value()
            if constant is None:
                results = evaluate_constant(node, [self._get(name) for name in node.inputs])
            else:
                results = (constant,)
        except UnsupportedNodeError:
            return False
        names = [name for name in node.proto.output if name]
        self._computed.update(zip(names, results, strict=False))
        return all(self._have(name) for name in node.outputs if name)


def _is_foldable(node: Node) -> bool:
    proto = node.proto
    known = proto.domain in ("", "ai.onnx") and onnx.defs.has(proto.op_type)
    return known and proto.op_type not in NOT_FOLDED and not any(subgraphs(proto))
