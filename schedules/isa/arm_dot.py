"""Integer dot products of AArch64: what implements the stages of `isa.stages`.

All compute, for every lane i, ``C[i] += sum_k A[k] * B[i, k]``.

* ``sdot`` (dotprod) multiplies signed bytes, ``usdot`` (i8mm) unsigned by signed ones, four for
  each of four lanes. One operand may be four bytes of a register, for all lanes: 16 input channels
  are loaded at once and used in four instructions, whose weights lie ``[4 pieces][4 lanes][4]``.
* ``usmmla`` (i8mm) multiplies eight bytes of two pixels by those of two outputs: 2 x 2 sums, which
  are put in order after the window.
* ``smull`` and ``smlal`` (every processor) multiply eight signed bytes of the input by weights of
  one output, and add up two products in 16 bits, which both fit: 2 * 128 * 127 < 2**15. ``sadalp``
  adds neighbours to four partial sums, which ``addp`` adds up after the window. (With two bytes of
  the input repeated for several outputs, every sixth instruction repeats bytes.)
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)

from tvmquant.schedules.isa.dot_product import DotProduct, Stage

_SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
_USDOT = "llvm.aarch64.neon.usdot.v4i32.v16i8"
_USMMLA = "llvm.aarch64.neon.usmmla.v4i32.v16i8"
_SMULL = "llvm.aarch64.neon.smull.v8i16"
_SADDLP = "llvm.aarch64.neon.saddlp.v4i32.v8i16"
_ADDP = "llvm.aarch64.neon.addp.v4i32"


def multiply_add(dot: DotProduct, total: Any, a: Any, b: Any) -> Any:
    """Return ``total`` plus the dot products of two vectors of operands."""
    if dot.partial > 1:
        products = [_products(a, b, half) for half in (0, 1)]
        return total + T.call_llvm_pure_intrin("int32x4", _SADDLP, products[0] + products[1])
    if dot.input_offset:
        return T.call_llvm_pure_intrin("int32x4", _SDOT, total, b, a)
    name = _USMMLA if dot.rows > 1 else _USDOT
    return T.call_llvm_pure_intrin("int32x4", name, total, T.reinterpret("uint8x16", a), b)


def _products(a: Any, b: Any, half: int) -> Any:
    """Return the products of eight bytes of each vector, in 16 bits."""
    part = [*range(8 * half, 8 * half + 8)]
    return T.call_llvm_pure_intrin("int16x8", _SMULL, T.Shuffle([a], part), T.Shuffle([b], part))


def _piece(vector: Any, index: int) -> Any:
    """Return four bytes of a vector, in every lane."""
    words = T.reinterpret("int32x4", vector)
    return T.reinterpret("int8x16", T.Shuffle([words], [index] * 4))


def _dot(dot: DotProduct) -> tirx.PrimFunc:
    if dot.partial > 1:
        return _partial_dot(dot)
    if dot.rows > 1:
        return _matrix_product(dot)
    lanes, group, piece, in_dtype = dot.lanes, dot.group, dot.piece, dot.input_dtype
    pieces = group // piece

    def total(A: Any, B: Any, C: Any, first: int) -> Any:
        found = C.vload([first], dtype="int32x4")
        loaded = A.vload([0], dtype=f"{in_dtype}x{group}")
        for index in range(pieces):
            weight = B.vload([index, first, 0], dtype="int8x16")
            found = multiply_add(dot, found, _piece(loaded, index), weight)
        return found

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((group,), in_dtype, offset_factor=1),
        B: T.Buffer((pieces, lanes, piece), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:group], B[0:pieces, 0:lanes, 0:piece])
            T.writes(C[0:lanes])
            for first in T.unroll(0, lanes // 4):
                C[T.ramp(first * 4, 1, 4)] = total(A, B, C, first * 4)

    return implementation


def _partial_dot(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group, partial = dot.lanes, dot.group, dot.partial

    def total(A: Any, B: Any, C: Any, lane: Any) -> Any:
        a, b = A.vload([0], dtype="int8x16"), B.vload([lane, 0], dtype="int8x16")
        return multiply_add(dot, C.vload([lane, 0], dtype="int32x4"), a, b)

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((group,), "int8", offset_factor=1),
        B: T.Buffer((lanes, group), "int8", offset_factor=1),
        C: T.Buffer((lanes, partial), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes, 0:partial], A[0:group], B[0:lanes, 0:group])
            T.writes(C[0:lanes, 0:partial])
            for lane in T.unroll(0, lanes):
                C[lane, T.ramp(0, 1, 4)] = total(A, B, C, lane)

    return implementation


def _matrix_product(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group, rows = dot.lanes, dot.group, dot.rows

    def total(A: Any, B: Any, C: Any, pair: Any) -> Any:
        a, b = A.vload([0, 0], dtype="uint8x16"), B.vload([2 * pair, 0], dtype="int8x16")
        return multiply_add(dot, C.vload([pair, 0, 0], dtype="int32x4"), a, b)

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((rows, group), "uint8", offset_factor=1),
        B: T.Buffer((lanes, group), "int8", offset_factor=1),
        C: T.Buffer((lanes // 2, rows, 2), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0 : lanes // 2, 0:rows, 0:2], A[0:rows, 0:group], B[0:lanes, 0:group])
            T.writes(C[0 : lanes // 2, 0:rows, 0:2])
            for pair in T.unroll(0, lanes // 2):
                C[pair, 0, T.ramp(0, 1, 4)] = total(A, B, C, pair)

    return implementation


def _collected_matrices(dot: DotProduct) -> tirx.PrimFunc:
    lanes, rows = dot.lanes, dot.rows

    def row(A: Any, index: int, first: Any) -> Any:
        pairs = [A.vload([first + i, 0, 0], "int32x4") for i in (0, 1)]
        return T.Shuffle(pairs, [4 * i + 2 * index + j for i in (0, 1) for j in (0, 1)])

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((lanes // 2, rows, 2), "int32", offset_factor=1),
        C: T.Buffer((rows, lanes), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(A[0 : lanes // 2, 0:rows, 0:2])
            T.writes(C[0:rows, 0:lanes])
            for part in T.unroll(0, lanes // 4):
                C[0, T.ramp(part * 4, 1, 4)] = row(A, 0, part * 2)
                C[1, T.ramp(part * 4, 1, 4)] = row(A, 1, part * 2)

    return implementation


def _collect(dot: DotProduct) -> tirx.PrimFunc:
    if dot.rows > 1:
        return _collected_matrices(dot)
    lanes = dot.lanes

    def total(A: Any, C: Any, lane: Any) -> Any:
        pairs = [
            _pairwise(A.vload([lane + i, 0], "int32x4"), A.vload([lane + i + 1, 0], "int32x4"))
            for i in (0, 2)
        ]
        return C.vload([lane], "int32x4") + _pairwise(*pairs)

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((lanes, 4), "int32", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes, 0:4])
            T.writes(C[0:lanes])
            for part in T.unroll(0, lanes // 4):
                C[T.ramp(part * 4, 1, 4)] = total(A, C, part * 4)

    return implementation


def _pairwise(a: Any, b: Any) -> Any:
    """Return the sums of neighbours of two vectors."""
    return T.call_llvm_pure_intrin("int32x4", _ADDP, a, b)


IMPLEMENTATIONS = {Stage.DOT: _dot, Stage.COLLECT: _collect}
