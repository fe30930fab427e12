"""Integer dot products of x86: what implements the stages of `isa.stages`.

All compute, for every lane i, ``C[i] += sum_k A[k] * B[i, k]`` with A broadcast to all lanes. TVM's
own VNNI intrinsics are not used: the LLVM of this wheel expects byte vectors as operands.

* ``vpdpbusd`` (VNNI): unsigned by signed bytes, four per lane, accumulated without saturation.
* ``vpmaddwd`` (AVX2, AVX512BW) and ``vpaddd``: signed words, two per lane.
* ``vpmaddubsw``, ``vpmaddwd`` by ones, ``vpaddd``: unsigned by signed bytes, four per lane. The
  first saturates sums of two products at 16 bits (255 * 127 * 2 = 64770 would not fit), so the
  description holds for weights proven to fit (`conv2d_packing.provable_chain`).

Where a whole chain of such sums was proven to fit, it is added up in 16 bits (`Stage.CHAIN`:
``vpmaddubsw``, ``vpaddw``; two lanes of 16 bits for each of 32) and then widened into the
accumulator once (`Stage.WIDEN`: ``vpmaddwd`` by ones, ``vpaddd``; `Stage.SCALE`: by a factor for
every lane instead of ones). Nibbles are unpacked by shift, mask and subtraction, which LLVM shares
between the tiles' columns.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)

from tvmquant.schedules.isa.dot_product import DotProduct, Stage

# By the bits of a register.
_VNNI = {512: "llvm.x86.avx512.vpdpbusd.512", 256: "llvm.x86.avx512.vpdpbusd.256"}
_PMADDUBSW = {512: "llvm.x86.avx512.pmaddubs.w.512", 256: "llvm.x86.avx2.pmadd.ub.sw"}
_PMADDWD = {512: "llvm.x86.avx512.pmaddw.d.512", 256: "llvm.x86.avx2.pmadd.wd"}


def llvm_names(dot: DotProduct) -> tuple[str, ...]:
    """Return the LLVM intrinsics that multiply for a dot product, in the order of their use."""
    bits = 32 * dot.lanes
    if dot.saturates:
        return (_PMADDUBSW[bits], _PMADDWD[bits])
    return (_VNNI[bits] if dot.group == 4 else _PMADDWD[bits],)


def _broadcast(dot: DotProduct, operand: Any, first: int) -> Any:
    """Return ``group`` neighbours from ``first`` on, in every lane."""
    scalar = operand.vload([first], dtype=f"{dot.input_dtype}x{dot.group}")
    return T.reinterpret(_operands(dot), T.broadcast(T.reinterpret("int32", scalar), dot.lanes))


def _operands(dot: DotProduct) -> str:
    """Return the type of a vector of weights."""
    return f"{dot.weight_dtype}x{dot.group * dot.lanes}"


def _nibbles(dot: DotProduct, packed: Any, half: int) -> Any:
    """Return the weights in the low (0) or high (1) nibbles of a vector of bytes."""
    width = dot.group * dot.lanes
    octets = packed.vload([0, 0], dtype=f"uint8x{width}")
    if half:
        octets = octets >> T.broadcast(T.uint8(4), width)
    else:
        octets = octets & T.broadcast(T.uint8(15), width)
    weights = T.cast(octets, f"int8x{width}") - T.broadcast(T.int8(8), width)
    return T.cast(weights, _operands(dot))


def _replicated(dot: DotProduct, factors: Any, count: int) -> Any:
    """Return every lane's factor (a byte) in each of the ``count`` parts of the lane."""
    lanes = dot.lanes
    wide = T.cast(factors.vload([0], dtype=f"uint8x{lanes}"), f"int32x{lanes}")
    ones = sum(1 << (32 // count * i) for i in range(count))
    return T.reinterpret(
        f"int{32 // count}x{count * lanes}", wide * T.broadcast(T.int32(ones), lanes)
    )


def _pairs(dot: DotProduct, a: Any, b: Any) -> Any:
    """Return sums of two byte products in 16 bits."""
    return T.call_llvm_pure_intrin(f"int16x{2 * dot.lanes}", llvm_names(dot)[0], a, b)


def _widened(dot: DotProduct, a: Any, b: Any) -> Any:
    """Return sums of two word products in 32 bits."""
    return T.call_llvm_pure_intrin(f"int32x{dot.lanes}", llvm_names(dot)[-1], a, b)


def _ones(dot: DotProduct) -> Any:
    return T.broadcast(T.int16(1), 2 * dot.lanes)


def multiply_add(dot: DotProduct, total: Any, a: Any, b: Any) -> Any:
    """Return ``total`` plus the dot products of two vectors of operands."""
    if dot.group == 4 and not dot.saturates:
        return T.call_llvm_pure_intrin(f"int32x{dot.lanes}", llvm_names(dot)[0], total, a, b)
    if dot.saturates:
        a, b = _pairs(dot, a, b), _ones(dot)
    return total + _widened(dot, a, b)


def _dot(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group = dot.lanes, dot.group

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((group,), dot.input_dtype, offset_factor=1),
        B: T.Buffer((lanes, group), dot.weight_dtype, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:group], B[0:lanes, 0:group])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = multiply_add(
                dot,
                C.vload([0], dtype=f"int32x{lanes}"),
                _broadcast(dot, A, 0),
                B.vload([0, 0], dtype=_operands(dot)),
            )

    return implementation


def _dot_nibbles(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group = dot.lanes, dot.group

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((2 * group,), dot.input_dtype, offset_factor=1),
        B: T.Buffer((lanes, group), "uint8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0 : 2 * group], B[0:lanes, 0:group])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = multiply_add(
                dot,
                multiply_add(
                    dot,
                    C.vload([0], dtype=f"int32x{lanes}"),
                    _broadcast(dot, A, 0),
                    _nibbles(dot, B, 0),
                ),
                _broadcast(dot, A, group),
                _nibbles(dot, B, 1),
            )

    return implementation


def _chain(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes, 2), "int16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes, 0:2], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes, 0:2])
            C[0, T.ramp(T.int32(0), 1, 2 * lanes)] = C.vload(
                [0, 0], dtype=f"int16x{2 * lanes}"
            ) + _pairs(dot, _broadcast(dot, A, 0), B.vload([0, 0], dtype=_operands(dot)))

    return implementation


def _chain_nibbles(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((8,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "uint8", offset_factor=1),
        C: T.Buffer((lanes, 2), "int16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes, 0:2], A[0:8], B[0:lanes, 0:4])
            T.writes(C[0:lanes, 0:2])
            C[0, T.ramp(T.int32(0), 1, 2 * lanes)] = (
                C.vload([0, 0], dtype=f"int16x{2 * lanes}")
                + _pairs(dot, _broadcast(dot, A, 0), _nibbles(dot, B, 0))
                + _pairs(dot, _broadcast(dot, A, 4), _nibbles(dot, B, 1))
            )

    return implementation


def _widen(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((lanes, 2), "int16", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=f"int32x{lanes}") + _widened(
                dot, A.vload([0, 0], dtype=f"int16x{2 * lanes}"), _ones(dot)
            )

    return implementation


def _scale(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((lanes, 2), "int16", offset_factor=1),
        B: T.Buffer((lanes,), "uint8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes, 0:2], B[0:lanes])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=f"int32x{lanes}") + _widened(
                dot, A.vload([0, 0], dtype=f"int16x{2 * lanes}"), _replicated(dot, B, 2)
            )

    return implementation


def _unpack_scaled(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group, weight_dtype = dot.lanes, dot.group, dot.weight_dtype

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((lanes, group), "uint8", offset_factor=1),
        B: T.Buffer((lanes,), "uint8", offset_factor=1),
        C: T.Buffer((2, lanes, group), weight_dtype, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(A[0:lanes, 0:group], B[0:lanes])
            T.writes(C[0:2, 0:lanes, 0:group])
            C[0, 0, T.ramp(T.int32(0), 1, group * lanes)] = _nibbles(dot, A, 0) * _replicated(
                dot, B, group
            )
            C[1, 0, T.ramp(T.int32(0), 1, group * lanes)] = _nibbles(dot, A, 1) * _replicated(
                dot, B, group
            )

    return implementation


IMPLEMENTATIONS = {
    Stage.DOT: _dot,
    Stage.DOT_NIBBLES: _dot_nibbles,
    Stage.CHAIN: _chain,
    Stage.CHAIN_NIBBLES: _chain_nibbles,
    Stage.WIDEN: _widen,
    Stage.SCALE: _scale,
    Stage.UNPACK_SCALED: _unpack_scaled,
}
