"""Dot products over taps of a window, one per lane, for depthwise convolution.

For every lane i, ``C[i] += sum_k A[k, c(i)] * B[i, k]``: A holds ``group`` rows of the window at
one column, or columns of one row, ``lanes`` neighbouring channels each; c is the identity or
`channel`. They are interleaved in registers, so that each lane of the dot-product instruction finds
its own taps. LLVM sees an interleaving once when neighbouring output columns, unrolled, share it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812

from tvmquant.schedules.isa import (
    PMADDWD_256,
    PMADDWD_512,
    VNNI_256,
    VNNI_512,
    DotProduct,
)

_INSTRUCTIONS = {
    VNNI_512: "llvm.x86.avx512.vpdpbusd.512",
    VNNI_256: "llvm.x86.avx512.vpdpbusd.256",
    PMADDWD_512: "llvm.x86.avx512.pmaddw.d.512",
    PMADDWD_256: "llvm.x86.avx2.pmadd.wd",
}


# Words of a part of a register that instructions interleave within.
_PART = 8


def widens(dot: DotProduct, vectors: int) -> bool:
    """Whether the taps of two vectors of channels are widened before they are interleaved.

    Loads widen at no cost, and words are interleaved within parts of registers: channels come in
    another order, that of `channel`, and the two vectors' results are narrowed back into theirs.
    Widening interleaved bytes takes another instruction each, which crosses the halves of a
    register and takes twice as long as others (Zen 3: 0.9x).
    """
    return dot.tensorized and dot.group == 2 and vectors == 2


def channel(lane: Any, dot: DotProduct) -> Any:
    """Return which of two vectors' channels a lane of their accumulators holds (`widens`)."""
    half = _PART // 2
    return lane % dot.lanes // half * _PART + lane // dot.lanes * half + lane % half


def lane(channel: Any, dot: DotProduct) -> Any:
    """Return the lane that holds a channel: the inverse of `channel`."""
    half = _PART // 2
    return channel % _PART // half * dot.lanes + channel // _PART * half + channel % half


def _description(dot: DotProduct, vectors: int, widened: bool, along: bool) -> tirx.PrimFunc:
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


def _product(dot: DotProduct, taps: Any, weight: Any) -> tirx.PrimExpr:
    """Return the dot products of one vector of interleaved taps (uint8 or int16) and weights."""
    vector, instruction = f"int32x{dot.lanes}", _INSTRUCTIONS[dot]
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


def _implementation(dot: DotProduct, vectors: int, widened: bool, along: bool) -> tirx.PrimFunc:
    lanes, group, weight_dtype = dot.lanes * vectors, dot.group, dot.weight_dtype
    rows, columns = (1, group) if along else (group, 1)
    down, right = int(not along), int(along)
    acc, loaded, packed = f"int32x{lanes}", f"uint8x{lanes}", f"{weight_dtype}x{lanes * group}"

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
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

    return implementation


def intrinsic(dot: DotProduct, vectors: int, widened: bool, along: bool) -> str:
    """Register an intrinsic on first use and return its name.

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
    name = f"tvmquant.depthwise_{dot.name}_{vectors}"
    name += "_widened" * widened + "_along" * along
    if TensorIntrin.get(name, allow_missing=True) is None:
        parameters = (dot, vectors, widened, along)
        TensorIntrin.register(name, _description(*parameters), _implementation(*parameters))
    return name


def description_only(dot: DotProduct, vectors: int, widened: bool, along: bool) -> TensorIntrin:
    """Return the intrinsic with its description for both halves, to run any schedule anywhere."""
    description = _description(dot, vectors, widened, along)
    return TensorIntrin(description, description)
