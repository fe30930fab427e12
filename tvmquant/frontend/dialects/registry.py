"""The table from operators of quantized dialects to the functions that write them as QDQ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tvmquant.frontend.dialects.draft import Draft
from tvmquant.frontend.node import Node

Rewriting: TypeAlias = Callable[[Draft, Node], None]


@dataclass(frozen=True)
class Rule:
    """How nodes of one operator are written.

    Parameters
    ----------
    rewriting : function
        Writes a node's outputs into a draft. Raises UnsupportedNodeError if it cannot.
    fewest, most : int
        Numbers of inputs that nodes may have; the first ``fewest`` must be given.
    optional : tuple of int
        Inputs among these that may be left out nevertheless.
    """

    rewriting: Rewriting
    fewest: int
    most: int
    optional: tuple[int, ...]


# By operator, with its domain if that is not ONNX's own.
RULES: dict[str, Rule] = {}


def rewriting(
    *op_types: str, fewest: int, most: int, optional: tuple[int, ...] = ()
) -> Callable[[Rewriting], Rewriting]:
    """Register a function for some operators, whose numbers of inputs are as in `Rule`."""

    def register(function: Rewriting) -> Rewriting:
        for op_type in op_types:
            RULES[op_type] = Rule(function, fewest, most, optional)
        return function

    return register
