"""What every operator of the simulator receives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmquant.arithmetic import Array

# Scratch arrays of one operator stay near this size whatever the batch.
SCRATCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class OpCall:
    """One call of the graph with its operands evaluated.

    Parameters
    ----------
    layer : str
        Layer id, or the variable's name where the call carries none; for messages.
    args : sequence
        Arrays, tuples of arrays, shapes (tuples of int) and numbers, as the operator takes them.
    attrs : mapping of str to plain Python values
    """

    layer: str
    args: Sequence[Any]
    attrs: Mapping[str, Any]


Operator = Callable[[OpCall], Any]


def batch_slices(count: int, bytes_per_item: int) -> Iterator[slice]:
    """Cut ``range(count)`` into slices whose scratch arrays stay near `SCRATCH_BYTES`."""
    step = max(1, SCRATCH_BYTES // max(1, bytes_per_item))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def channel_axis(call: OpCall) -> int:
    """Return the channel axis of a four-dimensional operator's ``layout``."""
    return 1 if call.attrs["layout"] == "NCHW" else 3


def to_nchw(x: Array, call: OpCall) -> Array:
    """View activations (or weights, O first) of the call's layout as NCHW (OIHW)."""
    return x if call.attrs["layout"] == "NCHW" else x.transpose(0, 3, 1, 2)


def from_nchw(x: Array, call: OpCall) -> Array:
    """Undo `to_nchw`."""
    return x if call.attrs["layout"] == "NCHW" else x.transpose(0, 2, 3, 1)


def aligned(values: Any, rank: int, call: OpCall, default_axis: int = 1) -> Array:
    """Shape (1,) and (C,) arrays so that they broadcast along the channel axis."""
    array: Array = np.asarray(values)
    if array.ndim != 1:
        return array
    shape = [1] * rank
    if array.size > 1:
        shape[call.attrs.get("axis", default_axis)] = array.size
    return array.reshape(shape)
