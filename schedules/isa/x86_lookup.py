"""Lookup of whole vectors of bytes in a table of 256 bytes with x86 (`registry.ByteLookup`).

``vpshufb`` looks bytes up in 16 entries: by the low four bits of the index, or zero where its top
bit is set. The table is cut in 16 pieces; pieces 0-7 are looked up with the index, 8-15 with the
index whose top bit is flipped, so that the other half is zero; bits 4, 5 and 6 choose among the
eight of each half. That is 16 lookups and 15 selections for 32 bytes (64 with AVX512BW), where one
element at a time costs two loads and an insertion each.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

ENTRIES = 256
PIECE = 16
_SHUFFLES = {32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}


def lookup(table: Any, index: tirx.PrimExpr, lanes: int) -> tirx.PrimExpr:
    """Return ``table[index]`` for a vector of indices.

    Parameters
    ----------
    table : one-dimensional uint8 buffer of 256 entries
    index : uint8 vector of ``lanes``
        Evaluated many times: should be a load or a variable.
    lanes : int
        32 with AVX2, 64 with AVX512BW.
    """
    byte, vector = f"int8x{lanes}", f"uint8x{lanes}"

    def constant(value: int) -> tirx.PrimExpr:
        return tirx.Broadcast(tirx.const(value, "uint8"), lanes)

    def piece(number: int, position: tirx.PrimExpr) -> tirx.PrimExpr:
        loaded = table.vload([number * PIECE], f"uint8x{PIECE}")
        entries = tirx.Shuffle([loaded] * (lanes // PIECE), [*range(lanes)])
        found = tirx.call_llvm_pure_intrin(
            byte,
            _SHUFFLES[lanes],
            tirx.reinterpret(byte, entries),
            tirx.reinterpret(byte, position),
        )
        return tirx.reinterpret(vector, found)

    def choose(first: int, count: int, position: tirx.PrimExpr) -> tirx.PrimExpr:
        if count == 1:
            return piece(first, position)
        half = count // 2
        low, high = choose(first, half, position), choose(first + half, half, position)
        bit = tirx.bitwise_and(index, constant(half * PIECE))
        return tirx.Select(tirx.EQ(bit, constant(0)), low, high)

    pieces = ENTRIES // PIECE // 2
    flipped = tirx.bitwise_xor(index, constant(128))
    return tirx.bitwise_or(choose(0, pieces, index), choose(pieces, pieces, flipped))
