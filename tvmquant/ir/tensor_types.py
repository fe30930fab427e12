"""Shapes, element types and attributes of Relax expressions as plain Python values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tvm import relax


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """Return the extents of a tensor that has no symbolic ones."""
    return tuple(int(extent) for extent in expr.ty.shape.values)


def nhwc_shape(expr: relax.Expr) -> tuple[int, int, int, int]:
    """Return the extents of a tensor of rank 4 that has no symbolic ones."""
    n, h, w, c = static_shape(expr)
    return n, h, w, c


def dtype_of(expr: relax.Expr) -> str:
    """Return a tensor's element type; empty for what is no tensor."""
    return str(expr.ty.dtype.dtype) if isinstance(expr.ty, relax.TensorType) else ""


def integers(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return an attribute's integers; as many as the operator prescribes."""
    return tuple(int(value) for value in values)
