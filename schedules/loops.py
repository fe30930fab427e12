"""Loop transformations that the memory-bound kernels share: flatten, run in parallel, vectorise.

A vectorised loop whose extent the lanes do not divide has no scalar tail: its last step begins
where it still ends with the tensor, and stores some elements once more (`overlap_tails`,
`flat_loop`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.s_tir import Schedule

# Waking the thread pool costs 1 microsecond where its threads still wait, 4 where they sleep; one
# core moves or computes about this many bytes in 3 (AVX-512) to 5 (AVX2).
PARALLEL_BYTES = 131072
# How a block names an axis over its outputs.
SPATIAL = "0"


def product(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape."""
    return math.prod(shape)


def round_up(value: int, multiple: int) -> int:
    """Return the least multiple that is not below ``value``."""
    return -(-value // multiple) * multiple


def divisors(value: int) -> list[int]:
    """Return the divisors of a number, the least first."""
    return [d for d in range(1, value + 1) if value % d == 0]


def broadcast_at(tensor: te.Tensor, index: Sequence[Any]) -> tirx.PrimExpr:
    """Return the element of ``tensor`` that numpy broadcasting pairs with output ``index``."""
    tail = index[len(index) - len(tensor.shape) :]
    return tensor(
        *[0 if int(extent) == 1 else i for extent, i in zip(tensor.shape, tail, strict=True)]
    )


def lanes_for(extent: int, widest: int) -> int:
    """Return how many lanes a vectorised loop of ``extent`` should have, a power of two.

    ``widest`` or a divisor of the extent close to it, so that no tail is left; where there is none,
    the widest power of two within the extent.
    """
    lanes = widest
    while lanes > extent:
        lanes //= 2
    exact = lanes
    while extent % exact:
        exact //= 2
    return exact if 4 * exact >= lanes else lanes


def overlapping_lanes(extent: int, widest: int) -> int:
    """Return the lanes, a power of two, with which a loop has fewest steps if they may overlap.

    Of several the narrowest, which repeats least.
    """
    within = [1 << i for i in range(widest.bit_length()) if 1 << i <= min(extent, widest)]
    return min(within, key=lambda lanes: (-(-extent // lanes), lanes))


def vectorize(sch: Schedule, loop: Any, lanes: int) -> Any:
    """Vectorise a loop in steps of ``lanes`` and return the loop over the steps.

    Before: ``for c in range(C)``. After: ``for c0 in range(ceil(C / lanes)): for c1 in
    vectorized(lanes)``, under the condition ``c0 * lanes + c1 < C`` where lanes does not divide C:
    `overlap_tails` removes it from the finished function.
    """
    outer, inner = sch.split(loop, [None, lanes])
    sch.vectorize(inner)
    return outer


def overlap_tails(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Let the last step of vectorised loops end with the tensor, instead of testing every element.

    Before::

        for c0 in range(ceil(C / lanes)):
            for c1 in vectorized(lanes):
                if c0 * lanes + c1 < C: y[c0 * lanes + c1] = f(c0 * lanes + c1)

    After::

        for c0 in range(ceil(C / lanes)):
            for c1 in vectorized(lanes):
                y[min(c0 * lanes, C - lanes) + c1] = f(min(c0 * lanes, C - lanes) + c1)

    What is stored twice is the same both times, since only blocks without reductions are changed.
    TVM's own loop partitioning fails on 64-bit loops, and leaves up to ``lanes - 1`` scalar steps.

    Parameters
    ----------
    function : PrimFunc
        Scheduled, with its blocks.
    """
    lanes: dict[tvm.ir.Var, int] = {}

    def loop(node: tirx.For) -> None:
        if node.kind == tirx.ForKind.VECTORIZED:
            lanes[node.loop_var] = int(node.extent)

    def block(node: Any) -> Any:
        conditions = _conjuncts(node.predicate)
        tails = [c for c in conditions if _is_tail(c, lanes)]
        if not tails or any(str(v.iter_type) != SPATIAL for v in node.block.iter_vars):
            return node
        values = [_overlapped(value, tails, lanes) for value in node.iter_values]
        others = [c for c in conditions if not _is_tail(c, lanes)]
        return s_tir.SBlockRealize(values, tirx.all(*others) if others else True, node.block)

    tvm_ffi.structural_walk(function.body, [(tirx.For, loop)], order="pre")
    body = tvm_ffi.structural_map(function.body, [(s_tir.SBlockRealize, block)], order="post")
    return function.with_body(body)


def _conjuncts(condition: Any) -> list[Any]:
    if isinstance(condition, tirx.And):
        return [*_conjuncts(condition.a), *_conjuncts(condition.b)]
    return [condition]


def _is_tail(condition: Any, lanes: dict[tvm.ir.Var, int]) -> bool:
    """Whether a condition is ``start + lane < extent``, of no fewer elements than lanes."""
    return (
        isinstance(condition, tirx.LT)
        and isinstance(condition.a, tirx.Add)
        and isinstance(condition.b, tirx.IntImm)
        and 0 < lanes.get(condition.a.b, 0) <= int(condition.b)
    )


def _overlapped(value: Any, tails: list[Any], lanes: dict[tvm.ir.Var, int]) -> Any:
    def index(node: Any) -> Any:
        for tail in tails:
            if tvm_ffi.structural_equal(node, tail.a):
                start, lane = node.a, node.b
                return tirx.min(start, tail.b - tirx.const(lanes[lane], start.ty.dtype)) + lane
        return node

    return tvm_ffi.structural_map(value, [(tirx.Add, index)], order="pre")


def flat_loop(
    out: Any, lanes: int, element: Callable[[Any], tirx.PrimExpr], *, parallel: bool
) -> tirx.Stmt:
    """Return the loop that computes a one-dimensional buffer, ``out[i] = element(i)``.

    Parameters
    ----------
    out : buffer
        At least ``lanes`` elements, as `flat_view` gives it.
    lanes : int
        Elements per vector step; the last step overlaps the one before it.
    element : callable
        Given the index, an int32 expression.
    parallel : bool
    """
    total = int(out.shape[0])
    step, lane = tirx.Var("step", "int32"), tirx.Var("lane", "int32")
    start = step * lanes
    index = (tirx.min(start, total - lanes) if total % lanes else start) + lane
    store = tirx.BufferStore(out, element(index), [index])
    vector = tirx.For(lane, 0, lanes, tirx.ForKind.VECTORIZED, store)
    kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
    return tirx.For(step, 0, -(-total // lanes), kind, vector)


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
