"""Relax operators that choose, replace or add up elements by their indices; for any type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvmquant.arithmetic import Array
from tvmquant.simulator.calls import OpCall, Operator

_ADDED: dict[str, np.ufunc] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def gather_elements(call: OpCall) -> Array:
    """Take an element for each index, the other coordinates being the index's own."""
    x, indices = call.args
    result: Array = x[_coordinates(indices, call.attrs["axis"] % x.ndim)]
    return result


def gather_nd(call: OpCall) -> Array:
    """Take a slice for each vector of indices along the last axis of them."""
    x, indices = call.args
    leading = call.attrs["batch_dims"]
    grid = np.indices(indices.shape[:-1], sparse=True)[:leading]
    result: Array = x[(*grid, *np.moveaxis(indices, -1, 0))]
    return result


def scatter_elements(call: OpCall) -> Array:
    """Write an element for each index, or combine it with what is there."""
    x, indices, updates = call.args
    return _scattered(x, _coordinates(indices, call.attrs["axis"] % x.ndim), updates, call)


def scatter_nd(call: OpCall) -> Array:
    """Write a slice for each vector of indices, or combine it with what is there."""
    x, indices, updates = call.args
    return _scattered(x, tuple(np.moveaxis(indices, -1, 0)), updates, call)


def _coordinates(indices: Array, axis: int) -> tuple[Array, ...]:
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = indices
    return tuple(grid)


def _scattered(x: Array, at: tuple[Array, ...], updates: Array, call: OpCall) -> Array:
    result = x.copy()
    if call.attrs["reduction"] == "update":
        result[at] = updates
    else:
        _ADDED[call.attrs["reduction"]].at(result, at, updates)
    return result


def _cumulative(function: Callable[..., Array], first: int) -> Operator:
    """Combine all elements up to each one along an axis; without itself, if exclusive."""

    def apply(call: OpCall) -> Array:
        x: Array = call.args[0]
        axis, dtype = call.attrs["axis"], call.attrs["dtype"]
        wanted: Any = x.dtype if dtype is None else str(dtype)
        result = function(x, axis=axis, dtype=wanted)
        if call.attrs["exclusive"]:
            result = np.roll(result, 1, axis)
            start = [slice(None)] * x.ndim
            start[axis] = slice(1)
            result[tuple(start)] = first
        return result

    return apply


INDEX_OPS: dict[str, Operator] = {
    "relax.gather_elements": gather_elements,
    "relax.gather_nd": gather_nd,
    "relax.scatter_elements": scatter_elements,
    "relax.scatter_nd": scatter_nd,
    "relax.cumsum": _cumulative(np.cumsum, 0),
    "relax.cumprod": _cumulative(np.cumprod, 1),
}
