"""Loop transformations that the memory-bound kernels share: flatten, run in parallel, vectorise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

# Waking the thread pool costs as much as one core moving or computing about this many bytes.
PARALLEL_BYTES = 16384


def product(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape."""
    return math.prod(shape)


def broadcast_at(tensor: te.Tensor, index: Sequence[Any]) -> tirx.PrimExpr:
    """Return the element of ``tensor`` that numpy broadcasting pairs with output ``index``."""
    tail = index[len(index) - len(tensor.shape) :]
    return tensor(
        *[0 if int(extent) == 1 else i for extent, i in zip(tensor.shape, tail, strict=True)]
    )


def lanes_for(extent: int, widest: int) -> int:
    """Return how many lanes a vectorised loop of ``extent`` should have, a power of two.

    ``widest`` or a divisor of the extent close to it, so that no tail is left; where there is none,
    the widest power of two within the extent (and `vectorize` handles the tail).
    """
    lanes = widest
    while lanes > extent:
        lanes //= 2
    exact = lanes
    while extent % exact:
        exact //= 2
    return exact if 4 * exact >= lanes else lanes


def vectorize(sch: Schedule, loop: Any, lanes: int) -> Any:
    """Vectorise a loop in steps of ``lanes`` and return the loop over the steps.

    Before: ``for c in range(C)``. After: ``for c0 in range(ceil(C / lanes)): for c1 in
    vectorized(lanes)``; where lanes does not divide C, the last step is peeled and runs in scalars.
    """
    extent = int(sch.get(loop).extent)
    outer, inner = sch.split(loop, [None, lanes])
    sch.vectorize(inner)
    if extent % lanes:
        sch.annotate(outer, "pragma_loop_partition_hint", 1)
    return outer


def parallel_chunks(sch: Schedule, loop: Any, threads: int, work_bytes: int) -> Any:
    """Run a loop in parallel if the work of all its iterations pays for waking the threads."""
    if threads > 1 and work_bytes >= PARALLEL_BYTES and int(sch.get(loop).extent) > 1:
        sch.parallel(loop)
    return loop


def flat_view(buffer: Any) -> tuple[Any, tirx.Stmt]:
    """Return a one-dimensional buffer over the same memory, and the statement that declares it."""
    total = product([int(v) for v in buffer.shape])
    view = tirx.decl_buffer((total,), buffer.dtype, f"{buffer.name}_flat", data=buffer.data)
    return view, tirx.DeclBuffer(view, data=buffer.data)


def with_body(loop: tirx.For, body: tirx.Stmt) -> tirx.For:
    """Return the same loop around another body."""
    return tirx.For(
        loop.loop_var, loop.min, loop.extent, loop.kind, body,
        loop.thread_binding, loop.annotations, loop.step,
    )  # fmt: skip
