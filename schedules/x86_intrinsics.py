"""Integer dot-product instructions of x86, each a description and its implementation.

All compute, for every lane i, ``C[i] += sum_k A[k] * B[i, k]`` with A broadcast to all lanes. TVM's
own VNNI intrinsics are not used: the LLVM of this wheel expects byte vectors as operands.

* ``vpdpbusd`` (VNNI): unsigned by signed bytes, four per lane, accumulated without saturation.
* ``vpmaddwd`` (AVX2, AVX512BW) and ``vpaddd``: signed words, two per lane.
* ``vpmaddubsw``, ``vpmaddwd`` by ones, ``vpaddd``: unsigned by signed bytes, four per lane. The
  first saturates sums of two products at 16 bits (255 * 127 * 2 = 64770 would not fit), so the
  description holds for weights whose neighbours were proven to fit (`conv2d.pairs_fit`).
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)

from tvmquant.schedules.isa import (
    PMADDUBSW_256,
    PMADDUBSW_512,
    PMADDWD_256,
    PMADDWD_512,
    VNNI_256,
    VNNI_512,
    DotProduct,
)


def describe(dot: DotProduct) -> tirx.PrimFunc:
    """Return what a dot product computes, as plain loops that any target runs."""
    lanes, group = dot.lanes, dot.group
    in_dtype, weight_dtype = dot.input_dtype, dot.weight_dtype

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((group,), in_dtype, offset_factor=1),
        B: T.Buffer((lanes, group), weight_dtype, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:group], B[0:lanes, 0:group])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, group):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return description


def _vnni(dot: DotProduct, instruction: str) -> tirx.PrimFunc:
    lanes = dot.lanes
    acc, packed = f"int32x{lanes}", f"int8x{4 * lanes}"

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                acc,
                instruction,
                C.vload([0], dtype=acc),
                T.reinterpret(
                    packed, T.broadcast(T.reinterpret("int32", A.vload([0], "uint8x4")), lanes)
                ),
                B.vload([0, 0], dtype=packed),
            )

    return implementation


def _pmaddwd(dot: DotProduct, instruction: str) -> tirx.PrimFunc:
    lanes = dot.lanes
    acc, packed = f"int32x{lanes}", f"int16x{2 * lanes}"

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((2,), "int16", offset_factor=1),
        B: T.Buffer((lanes, 2), "int16", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=acc) + T.call_llvm_pure_intrin(
                acc,
                instruction,
                T.reinterpret(
                    packed, T.broadcast(T.reinterpret("int32", A.vload([0], "int16x2")), lanes)
                ),
                B.vload([0, 0], dtype=packed),
            )

    return implementation


def _pmaddubsw(dot: DotProduct, instruction: str) -> tirx.PrimFunc:
    lanes = dot.lanes
    acc, packed, pairs = f"int32x{lanes}", f"int8x{4 * lanes}", f"int16x{2 * lanes}"
    widen = _INTRINSICS[PMADDWD_512 if lanes == PMADDWD_512.lanes else PMADDWD_256][1]

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=acc) + T.call_llvm_pure_intrin(
                acc,
                widen,
                T.call_llvm_pure_intrin(
                    pairs,
                    instruction,
                    T.reinterpret(
                        packed,
                        T.broadcast(T.reinterpret("int32", A.vload([0], "uint8x4")), lanes),
                    ),
                    B.vload([0, 0], dtype=packed),
                ),
                T.broadcast(T.int16(1), 2 * lanes),
            )

    return implementation


_INTRINSICS: dict[DotProduct, tuple[Callable[[DotProduct, str], tirx.PrimFunc], str]] = {
    VNNI_512: (_vnni, "llvm.x86.avx512.vpdpbusd.512"),
    VNNI_256: (_vnni, "llvm.x86.avx512.vpdpbusd.256"),
    PMADDUBSW_512: (_pmaddubsw, "llvm.x86.avx512.pmaddubs.w.512"),
    PMADDUBSW_256: (_pmaddubsw, "llvm.x86.avx2.pmadd.ub.sw"),
    PMADDWD_512: (_pmaddwd, "llvm.x86.avx512.pmaddw.d.512"),
    PMADDWD_256: (_pmaddwd, "llvm.x86.avx2.pmadd.wd"),
}


def intrinsic(dot: DotProduct) -> str:
    """Register the intrinsic of a dot product on first use and return its name."""
    name = f"tvmquant.{dot.name}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        implement, instruction = _INTRINSICS[dot]
        TensorIntrin.register(name, describe(dot), implement(dot, instruction))
    return name
