"""Stores of images whose channels come from different vectors."""

from __future__ import annotations

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)


def interleave(channels: int, lanes: int, dtype: str) -> str:
    """Register what stores ``lanes`` pixels of ``channels`` planes, and return its name.

    Computes ``C[i, c] = A[c, 0, i]``: one shuffle of the planes' vectors and one store.
    """
    name = f"tvmquant.interleave_{dtype}_{channels}x{lanes}"
    if TensorIntrin.get(name, allow_missing=True) is not None:
        return name
    width = channels * lanes
    order = [c * lanes + i for i in range(lanes) for c in range(channels)]

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((channels, 1, lanes), dtype, offset_factor=1),
        C: T.Buffer((lanes, channels), dtype, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(A[0:channels, 0, 0:lanes])
            T.writes(C[0:lanes, 0:channels])
            for i, c in T.grid(lanes, channels):
                with T.sblock("copy"):
                    vi, vc = T.axis.remap("SS", [i, c])
                    C[vi, vc] = A[vc, 0, vi]

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((channels, 1, lanes), dtype, offset_factor=1),
        C: T.Buffer((lanes, channels), dtype, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(A[0:channels, 0, 0:lanes])
            T.writes(C[0:lanes, 0:channels])
            C[0, T.ramp(T.int32(0), 1, width)] = T.Shuffle(
                [A.vload([c, 0, 0], dtype=f"{dtype}x{lanes}") for c in range(channels)], order
            )

    TensorIntrin.register(name, description, implementation)
    return name
