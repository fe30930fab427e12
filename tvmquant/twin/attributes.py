"""Read the attributes of Relax calls as plain Python values, and refuse what torch cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm

from tvmquant.errors import UnsupportedModelError


def integers(values: Any) -> list[int]:
    """Return the integers of a TVM array."""
    return [int(value) for value in values]


def is_integer(expr: Any) -> bool:
    """Whether an extent or a bound is a number rather than an expression of unknown extents."""
    return isinstance(expr, int | tvm.tirx.IntImm)


def number(expr: Any) -> float:
    """Return the value of a primitive argument such as a clip bound."""
    value = getattr(expr, "value", expr)
    return float(getattr(value, "value", value))


def static_shape(shape: Sequence[Any]) -> list[int]:
    """Return a shape with its one unknown extent, such as the batch, as -1.

    Raises
    ------
    UnsupportedModelError
        When more than one extent is unknown.
    """
    extents = [int(extent) if is_integer(extent) else -1 for extent in shape]
    if extents.count(-1) > 1:
        raise UnsupportedModelError(
            f"shape ({', '.join(str(extent) for extent in shape)}) has more than one unknown "
            "extent; expected only the batch to be unknown, fix the others when importing"
        )
    return extents


def require(what: str, found: Any, *expected: str) -> None:
    """Raise `UnsupportedModelError` unless an attribute has one of the expected values."""
    if str(found) not in expected:
        raise UnsupportedModelError(f"{what} is {found}; expected {' or '.join(expected)}")
