"""Torch functions that choose, replace or add up elements by their indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tvm import relax

Maker = Callable[[relax.Call], Callable[..., Any]]

# torch's names of the reductions that combine an element with what is there
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _gather_elements(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    axis = int(call.attrs.axis)
    return lambda x, indices: torch.gather(x, axis, indices.long())


def _gather_nd(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    leading = int(call.attrs.batch_dims)

    def gather_nd(x: Tensor, indices: Tensor) -> Tensor:
        grid = [
            torch.arange(n, device=x.device).reshape(
                [-1 if i == axis else 1 for i in range(indices.ndim - 1)]
            )
            for axis, n in enumerate(indices.shape[:leading])
        ]
        return x[(*grid, *indices.long().unbind(-1))]

    return gather_nd


def _scatter_elements(call: relax.Call) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    axis, reduction = int(call.attrs.axis), str(call.attrs.reduction)
    return lambda x, indices, updates: _scattered(x, axis, indices.long(), updates, reduction)


def _scatter_nd(call: relax.Call) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    reduction = str(call.attrs.reduction)

    def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        """Scatter rows: the axes that are indexed become one, as do the others."""
        depth = indices.shape[-1]
        at = torch.zeros_like(indices[..., 0], dtype=torch.long)
        for extent, index in zip(x.shape[:depth], indices.long().unbind(-1), strict=True):
            at = at * extent + index
        rows = x.reshape(x.shape[:depth].numel(), -1)
        flat = at.reshape(-1, 1).expand(-1, rows.shape[1])
        new = updates.reshape(flat.shape)
        return _scattered(rows, 0, flat, new, reduction).reshape(x.shape)

    return scatter_nd


def _scattered(x: Tensor, axis: int, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "update":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, _REDUCTIONS[reduction])


def _cumulative(function: Callable[..., Tensor], first: int) -> Maker:
    """Combine all elements up to each one along an axis; without itself, if exclusive."""

    def make(call: relax.Call) -> Callable[[Tensor], Tensor]:
        axis, exclusive = int(call.attrs.axis), bool(call.attrs.exclusive)

        def apply(x: Tensor) -> Tensor:
            result = function(x, axis, dtype=x.dtype)
            if not exclusive:
                return result
            start = torch.full_like(result.narrow(axis, 0, 1), first)
            return torch.cat([start, result.narrow(axis, 0, x.shape[axis] - 1)], axis)

        return apply

    return make


INDEX_OPERATORS: dict[str, Maker] = {
    "relax.gather_elements": _gather_elements,
    "relax.gather_nd": _gather_nd,
    "relax.scatter_elements": _scatter_elements,
    "relax.scatter_nd": _scatter_nd,
    "relax.cumsum": _cumulative(torch.cumsum, 0),
    "relax.cumprod": _cumulative(torch.cumprod, 1),
}
