"""Copies of the rows of a window that come to lie one after the other."""

from __future__ import annotations

from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)


def _run(first: Any, count: int) -> Any:
    """Return where so many neighbours are; a vector of one would be none."""
    return T.ramp(first, 1, count) if count > 1 else first


def _lanes(dtype: str, count: int) -> str:
    return f"{dtype}x{count}" if count > 1 else dtype


def join_rows(rows: int, length: int, run: int, dtype: str) -> str:
    """Register what copies ``rows`` rows of ``length`` elements, and return its name.

    Computes ``C[r * length + j] = A[r, j]``. A row is one vector of the next power of two, of which
    the next row's overwrites what overhangs; the last is two vectors that overlap. What ``run``
    holds beyond the rows has any value, so its weights must be zero.
    """
    name = f"tvmquant.join_rows_{dtype}_{rows}x{length}of{run}"
    if TensorIntrin.get(name, allow_missing=True) is not None:
        return name
    wide = 1 << (length - 1).bit_length()
    narrow = wide if wide == length else wide // 2
    read, last, overlap = -(-run // length), (rows - 1) * length, length - narrow

    @T.prim_func(s_tir=True)
    def description(a: T.handle, c: T.handle) -> None:
        stride = T.int32()
        A = T.match_buffer(a, (read, length), dtype, offset_factor=1, strides=[stride, 1])
        C = T.match_buffer(c, (run,), dtype, offset_factor=1)
        with T.sblock("root"):
            T.reads(A[0:read, 0:length])
            T.writes(C[0:run])
            for k in T.serial(run):
                with T.sblock("copy"):
                    vk = T.axis.remap("S", [k])
                    C[vk] = A[vk // length, vk % length]

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, c: T.handle) -> None:
        stride = T.int32()
        A = T.match_buffer(a, (read, length), dtype, offset_factor=1, strides=[stride, 1])
        C = T.match_buffer(c, (run,), dtype, offset_factor=1)
        with T.sblock("root"):
            T.reads(A[0:read, 0:length])
            T.writes(C[0:run])
            for r in T.unroll(rows - 1):
                C[_run(r * length, wide)] = A.vload([r, 0], dtype=_lanes(dtype, wide))
            C[_run(last, narrow)] = A.vload([rows - 1, 0], dtype=_lanes(dtype, narrow))
            C[_run(last + overlap, narrow)] = A.vload(
                [rows - 1, overlap], dtype=_lanes(dtype, narrow)
            )

    TensorIntrin.register(name, description, implementation)
    return name
