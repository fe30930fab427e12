"""Dot products over taps of a window, one per lane, for depthwise convolution: what they compute.

For every lane i, ``C[i] += sum_k A[k, c(i)] * B[i, k]``: A holds ``group`` rows of the window at
one column, or columns of one row, ``lanes`` neighbouring channels each; c is the identity or
`channel`. They are interleaved in registers, so that each lane of the dot-product instruction finds
its own taps. LLVM sees an interleaving once when neighbouring output columns, unrolled, share it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812

from tvmquant.schedules.isa.dot_product import DotProduct


def widens(dot: DotProduct, vectors: int) -> bool:
    """Whether the taps of two vectors of channels are widened before they are interleaved.

    Loads widen at no cost, and words are interleaved within parts of registers: channels come in
    another order, that of `channel`, and the two vectors' results are narrowed back into theirs.
    Widening interleaved bytes takes another instruction each, which crosses the halves of a
    register and takes twice as long as others (Zen 3: 0.9x).
    """
    return dot.part > 0 and vectors == 2


def channel(lane: Any, dot: DotProduct) -> Any:
    """Return which of two vectors' channels a lane of their accumulators holds (`widens`)."""
    half = dot.part // 2
    return lane % dot.lanes // half * dot.part + lane // dot.lanes * half + lane % half


def lane(channel: Any, dot: DotProduct) -> Any:
    """Return the lane that holds a channel: the inverse of `channel`."""
    half = dot.part // 2
    return channel % dot.part // half * dot.lanes + channel // dot.part * half + channel % half


def describe(dot: DotProduct, vectors: int, widened: bool, along: bool) -> tirx.PrimFunc:
    """Return what an intrinsic computes, as plain loops that any target runs.

    Parameters
    ----------
    dot : DotProduct
    vectors : int
        Vectors of channels.
    widened : bool
        Channels come in the order of `channel`; only where `widens` holds.
    along : bool
        Of columns of one row, rather than of rows at one column.
    """
    lanes, group, weight_dtype = dot.lanes * vectors, dot.group, dot.weight_dtype
    rows, columns = (1, group) if along else (group, 1)
    down, right = int(not along), int(along)

    def at(lane: Any) -> Any:
        return channel(lane, dot) if widened else lane

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        row, column = T.int32(), T.int32()
        A = T.match_buffer(
            a, (rows, columns, lanes), "uint8", offset_factor=1, strides=[row, column, 1]
        )
        B = T.match_buffer(b, (lanes, group), weight_dtype, offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:rows, 0:columns, 0:lanes], B[0:lanes, 0:group])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, group):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk * down, vk * right, at(vi)], "int32") * T.cast(
                            B[vi, vk], "int32"
                        )

    return description
