"""The table from ONNX operators to the functions that emit Relax for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tvmquant.frontend.context import Context, Value
from tvmquant.frontend.node import Node

Converter: TypeAlias = Callable[[Context, Node], Value | tuple[Value, ...]]
# Looks at attributes alone; returns the reason why the node is unsupported, or None.
AttributeCheck: TypeAlias = Callable[[Node], str | None]

CONVERTERS: dict[str, Converter] = {}
CHECKS: dict[str, AttributeCheck] = {}


def converter(
    *op_types: str, check: AttributeCheck | None = None
) -> Callable[[Converter], Converter]:
    """Register a function as the converter of some operators.

    Parameters
    ----------
    op_types : str
        ONNX operators.
    check : callable, optional
        Judges a node by its attributes, before anything is converted, so that one error can list
        all nodes.
    """

    def register(function: Converter) -> Converter:
        for op_type in op_types:
            CONVERTERS[op_type] = function
            if check is not None:
                CHECKS[op_type] = check
        return function

    return register
