"""Dot products over taps of a window (`isa.taps`) with the instructions of x86."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812

from tvmquant.schedules.isa.dot_product import DotProduct
from tvmquant.schedules.isa.taps import channel
from tvmquant.schedules.isa.x86_dot import llvm_names


def _product(dot: DotProduct, taps: Any, weight: Any) -> tirx.PrimExpr:
    """Return the dot products of one vector of interleaved taps (uint8 or int16) and weights."""
    vector, instruction = f"int32x{dot.lanes}", llvm_names(dot)[0]
    if dot.group == 4:
        signed = T.reinterpret(f"int8x{4 * dot.lanes}", taps)
        zero = T.broadcast(T.int32(0), dot.lanes)
        return T.call_llvm_pure_intrin(vector, instruction, zero, signed, weight)
    words = T.cast(taps, f"int16x{2 * dot.lanes}")
    return T.call_llvm_pure_intrin(vector, instruction, words, weight)


def _products(
    dot: DotProduct, vectors: int, widened: bool, rows: list[Any], weight: Any
) -> tirx.PrimExpr:
    """Return the dot products of ``vectors`` vectors, side by side.

    Each vector interleaves its own channels: LLVM permutes whole vectors of 32 bytes to interleave
    them at once, which costs more than it saves.
    """
    lanes, group = dot.lanes, dot.group
    if widened:
        rows = [T.cast(row, f"int16x{lanes * vectors}") for row in rows]
    found = []
    for first in range(0, lanes * vectors, lanes):
        channels = range(first, first + lanes)
        order = [
            k * lanes * vectors + (channel(i, dot) if widened else i)
            for i in channels
            for k in range(group)
        ]
        part = range(first * group, (first + lanes) * group)
        taps = T.Shuffle(rows, order)
        found.append(_product(dot, taps, T.Shuffle([weight], [*part]) if vectors > 1 else weight))
    return T.Shuffle(found, [*range(lanes * vectors)]) if vectors > 1 else found[0]


def implementation(dot: DotProduct, vectors: int, widened: bool, along: bool) -> tirx.PrimFunc:
    """Return what computes `taps.describe`, of a dot product that does not saturate."""
    lanes, group, weight_dtype = dot.lanes * vectors, dot.group, dot.weight_dtype
    rows, columns = (1, group) if along else (group, 1)
    down, right = int(not along), int(along)
    acc, loaded, packed = f"int32x{lanes}", f"uint8x{lanes}", f"{weight_dtype}x{lanes * group}"

    @T.prim_func(s_tir=True)
    def instructions(a: T.handle, b: T.handle, c: T.handle) -> None:
        row, column = T.int32(), T.int32()
        A = T.match_buffer(
            a, (rows, columns, lanes), "uint8", offset_factor=1, strides=[row, column, 1]
        )
        B = T.match_buffer(b, (lanes, group), weight_dtype, offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:rows, 0:columns, 0:lanes], B[0:lanes, 0:group])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=acc) + _products(
                dot,
                vectors,
                widened,
                [A.vload([k * down, k * right, 0], dtype=loaded) for k in range(group)],
                B.vload([0, 0], dtype=packed),
            )

    return instructions
