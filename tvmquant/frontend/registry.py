"""The table from ONNX operators to the functions that emit Relax for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tvmquant.frontend.context import Context, Value
from tvmquant.frontend.node import Node

Converter: TypeAlias = Callable[[Context, Node], Value | tuple[Value, ...]]

# Of each of `operators.OPERATORS`.
CONVERTERS: dict[str, Converter] = {}


def converter(*op_types: str) -> Callable[[Converter], Converter]:
    """Register a function as the converter of some operators.

    Parameters
    ----------
    op_types : str
        ONNX operators, named in `operators.OPERATORS`; `operators.CHECKS` judges their attributes.
    """

    def register(function: Converter) -> Converter:
        for op_type in op_types:
            CONVERTERS[op_type] = function
        return function

    return register
