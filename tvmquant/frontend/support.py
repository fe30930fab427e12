"""The support check: one error that lists every node that cannot be imported, and why."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from tvmquant.errors import ModelError, UnsupportedModelError
from tvmquant.frontend.branches import computed_from, subgraphs
from tvmquant.frontend.fold import NOT_FOLDED
from tvmquant.frontend.function_bodies import SPELLED_OUT
from tvmquant.frontend.node import Node
from tvmquant.frontend.operators import CHECKS, OPERATORS
from tvmquant.frontend.prepare import check_with_onnx
from tvmquant.frontend.shape_ops import SHAPE_OPERATORS

_ADVICE = {
    "Loop": "it loops at run time; export the model without control flow (torch: tracing)",
    "Mod": "it jumps, where quantization rounds; compute it outside of the model",
    "Scan": "it loops at run time; export the model without control flow (torch: tracing)",
    "TopK": "it sorts; end the model before it and sort outside of it",
    "NonMaxSuppression": "it chooses boxes; end the model before it and choose outside of it",
    "GridSample": "it reads where the data say; split the model there",
}


@dataclass(frozen=True)
class UnsupportedNode:
    """A node that cannot be imported."""

    name: str
    op_type: str
    reason: str


def find_unsupported(
    model: str,
    nodes: Sequence[Node],
    constants: Mapping[str, int],
    refused: Mapping[str, str],
) -> list[UnsupportedNode]:
    """Return the nodes whose operator or attributes are not supported.

    Parameters
    ----------
    model : str
        Its name.
    nodes : sequence of Node
        In topological order.
    constants : mapping of str to int
        Names of the values known at import, and their ranks. Nodes that depend on these and on
        shapes only are evaluated and need no converter. Of an ``If`` whose condition does so the
        import takes one branch.
    refused : mapping of str to str
        Why nodes of a quantized dialect cannot be imported, by their names.

    Raises
    ------
    UnsupportedModelError
        If a node is not supported and another one is not valid.
    ModelError
        If a node is not valid.
    """
    computed = _computed(nodes, constants)
    found: dict[str, UnsupportedNode] = {}

    def note(node: Node, reason: str | None) -> None:
        if reason is not None:
            found[node.name] = UnsupportedNode(node.name, node.op_type, reason)

    for node in nodes:
        note(node, refused.get(node.name))
    for node in computed:
        if node.name not in refused:
            note(node, _why_unknown(node, nodes, constants))
    try:
        check_with_onnx((node for node in nodes if node.name not in found), f"model {model!r}")
    except ModelError:
        raise_unsupported(model, list(found.values()))
        raise
    for node in computed:
        if node.op_type in CHECKS:
            note(node, CHECKS[node.op_type](node, constants))
    return [found[node.name] for node in nodes if node.name in found]


def _computed(nodes: Sequence[Node], constants: Iterable[str]) -> list[Node]:
    """Return the nodes that compute with data, not with constants and shapes alone."""
    known = {"", *constants}
    computed = []
    for node in nodes:
        foldable = node.op_type not in NOT_FOLDED and _is_known_operator(node)
        if foldable and (node.op_type == "If" or not any(subgraphs(node.proto))):
            if known.issuperset(node.inputs):
                if node.op_type != "If":  # a branch may compute with data
                    known.update(node.outputs)
                continue
            if node.op_type in ("Shape", "Size"):
                known.update(node.outputs)
        computed.append(node)
    return computed


def raise_unsupported(model: str, found: Sequence[UnsupportedNode]) -> None:
    """Raise one error for all nodes of ``found``, if there are any.

    Raises
    ------
    UnsupportedModelError
    """
    if not found:
        return
    lines = [f"  {node.name} ({node.op_type}): {node.reason}" for node in found]
    count = "1 node" if len(found) == 1 else f"{len(found)} nodes"
    raise UnsupportedModelError(
        f"model {model!r} has {count} that tvmquant cannot import:\n" + "\n".join(lines)
    )


def _is_known_operator(node: Node) -> bool:
    return bool(node.proto.domain in ("", "ai.onnx")) and onnx.defs.has(node.proto.op_type)


def _why_unknown(node: Node, nodes: Sequence[Node], constants: Container[str]) -> str | None:
    """Return why the operator of a node is not supported, None if it is."""
    if node.op_type == "If":
        names = computed_from(node.inputs, nodes)
        read = ", ".join(repr(name) for name in names if name not in constants)
        return (
            f"which branch it takes depends on {read}; if that is a setting, store its value in "
            "the file as an initialiser of this name, else export the model without control flow"
        )
    if node.op_type in _ADVICE:
        return _ADVICE[node.op_type]
    if node.op_type in OPERATORS | SPELLED_OUT or node.op_type in SHAPE_OPERATORS:
        return None
    if _is_known_operator(node):
        return "the operator is not supported"
    if node.proto.domain in ("", "ai.onnx"):
        return f"there is no such operator in ONNX opset {node.opset}"
    return f"operators of domain {node.proto.domain!r} are not supported"
