"""What the intrinsics of dot products of bits compute, as plain loops that any target runs.

Values are -1 and +1. Their bits are 0 and 1, so that of K products as many are -1 as bits differ:

    sum x w = K - 2 popcount(x ^ w)                                                             (1)

*Words.* 32 channels are a word, the first its lowest bit; the bits of ``x ^ w`` are counted.

*Indices.* Four channels are an index. The counts of all 16 weights' indices against an input's
index are a row of a table (`counts`), which fits a register; it is looked up for as many outputs as
there are bytes in one. An input's index is stored times 16: as where its row begins.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)

from tvmquant.schedules.isa.dot_product import INDEX_BITS, DotProduct, Stage

# Entries of a row of the table, and of all rows.
ROW = 1 << INDEX_BITS
ENTRIES = ROW * ROW
# Channels whose bits are packed together.
PACKED = 32


def counts() -> npt.NDArray[np.uint8]:
    """Return the table of `Stage.COUNT`: at ``16 x + w`` the bits in which x and w differ."""
    index = np.arange(ROW)
    differing = (index[:, None] ^ index).reshape(-1, 1)
    found: npt.NDArray[np.uint8] = (differing >> np.arange(INDEX_BITS) & 1).sum(1, dtype=np.uint8)
    return found


def signs(dot: DotProduct, positive: Callable[[Any], Any], at: Any) -> tirx.PrimExpr:
    """Return an element of the input, given which channels are +1."""
    first = INDEX_BITS if dot.looks_up else 0
    bits = [
        positive(at * dot.values + i).astype(dot.input_dtype)
        << tirx.const(first + i, dot.input_dtype)
        for i in range(dot.values)
    ]
    return functools.reduce(operator.or_, bits)


def shifted(indices: npt.NDArray[Any], dot: DotProduct) -> npt.NDArray[Any]:
    """Return the bits of channels as elements of an input: indices times 16, words as they are."""
    return indices << INDEX_BITS if dot.looks_up else indices


def count(index: Any, weight: Any, table: Any) -> tirx.PrimExpr:
    """Return how many bits of two indices differ, the first of which is stored times 16.

    Tensorization finds no operand at a place that is data. So that the table is one, its first
    entry, the count of equal bits, is read: 0.
    """
    differing = (index >> tirx.const(INDEX_BITS, "uint8")) ^ weight
    return tirx.popcount(differing) + table[0]


def _describe_pack(dot: DotProduct) -> tirx.PrimFunc:
    return _describe_pack_indices(dot) if dot.looks_up else _describe_pack_word(dot)


def _describe_pack_indices(dot: DotProduct) -> tirx.PrimFunc:
    indices = PACKED // dot.values

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((PACKED,), "uint8", offset_factor=1),
        least: T.Buffer((PACKED,), "uint8", offset_factor=1),
        turned: T.Buffer((indices,), dot.input_dtype, offset_factor=1),
        C: T.Buffer((indices,), dot.input_dtype, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(least[0:PACKED], A[0:PACKED], turned[0:indices])
            T.writes(C[0:indices])
            for i in T.serial(0, indices):
                with T.sblock("pack"):
                    vi = T.axis.remap("S", [i])
                    C[vi] = signs(dot, lambda c: least[c] <= A[c], vi) ^ turned[vi]

    return description


def _describe_pack_word(dot: DotProduct) -> tirx.PrimFunc:
    """Return the same of one element: a loop of one step has no axis in tensorization."""

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((PACKED,), "uint8", offset_factor=1),
        least: T.Buffer((PACKED,), "uint8", offset_factor=1),
        turned: T.Buffer((1,), dot.input_dtype, offset_factor=1),
        C: T.Buffer((1,), dot.input_dtype, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(least[0:PACKED], A[0:PACKED], turned[0:1])
            T.writes(C[0:1])
            for _ in T.serial(0, 1):
                with T.sblock("pack"):
                    C[0] = signs(dot, lambda c: least[c] <= A[c], 0) ^ turned[0]

    return description


def _describe_count(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((1,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 1), "uint8", offset_factor=1),
        table: T.Buffer((1,), "uint8", offset_factor=1),
        C: T.Buffer((lanes // 2, 2), "uint8", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0 : lanes // 2, 0:2], A[0:1], B[0:lanes, 0:1], table[0:1])
            T.writes(C[0 : lanes // 2, 0:2])
            for i, h in T.grid(lanes // 2, 2):
                with T.sblock("update"):
                    vi, vh = T.axis.remap("SS", [i, h])
                    C[vi, vh] = C[vi, vh] + count(A[0], B[vi * 2 + vh, 0], table)

    return description


def _describe_widen_counts(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((lanes // 2, 2), "uint8", offset_factor=1),
        C: T.Buffer((lanes,), "uint16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0 : lanes // 2, 0:2])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    vi = T.axis.remap("S", [i])
                    C[vi] = C[vi] + T.cast(A[vi % (lanes // 2), vi // (lanes // 2)], "uint16")

    return description


DESCRIPTIONS = {
    Stage.PACK: _describe_pack,
    Stage.COUNT: _describe_count,
    Stage.WIDEN_COUNTS: _describe_widen_counts,
}
