"""Tensors with channels last, as ONNX Runtime's optimizer writes them, and back."""

from __future__ import annotations

from tvmquant.frontend.dialects.draft import Draft
from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node


def channels_first(draft: Draft, tensor: str, rank: int | None, name: str) -> str:
    """Return a tensor (N, spatial, C) as (N, C, spatial).

    Raises
    ------
    UnsupportedNodeError
        If its number of dimensions, ``rank``, is not known.
    """
    if rank is None:
        raise UnsupportedNodeError(
            "it has channels_last=1, and how many dimensions it has is not known; export the model "
            "without the optimizations that depend on the machine"
        )
    perm = [0, rank - 1, *range(1, rank - 1)]
    return draft.emit("Transpose", [tensor], f"{name}/Transpose", perm=perm)


def channels_last(draft: Draft, node: Node, tensor: str, rank: int | None) -> None:
    """Write the output of a node, (N, spatial, C), from the same with channels first."""
    perm = [0, *range(2, rank or 0), 1]
    draft.emit("Transpose", [tensor], f"{node.name}/y/Transpose", output=node.outputs[0], perm=perm)
