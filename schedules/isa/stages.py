"""What the intrinsics of dot products compute, as plain loops that any target runs.

Four-bit weights lie two in a byte, as ``w + 8``, the low nibble first; ``NIBBLES`` stages unpack
them themselves. What dot products of bits do is in `binary_stages`.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)

from tvmquant.schedules.isa import binary_stages
from tvmquant.schedules.isa.dot_product import DotProduct, Stage


def describe(dot: DotProduct, stage: Stage = Stage.DOT) -> tirx.PrimFunc:
    """Return what an intrinsic computes, as plain loops that any target runs."""
    return _DESCRIPTIONS[stage](dot)


def _describe_dot(dot: DotProduct) -> tirx.PrimFunc:
    if dot.partial > 1:
        return _describe_partial_dot(dot)
    if dot.rows > 1:
        return _describe_matrix_product(dot)
    if dot.piece < dot.group:
        return _describe_dot_of_pieces(dot)
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


def _describe_dot_of_pieces(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group, piece = dot.lanes, dot.group, dot.piece
    in_dtype, weight_dtype, pieces = dot.input_dtype, dot.weight_dtype, dot.group // dot.piece

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((group,), in_dtype, offset_factor=1),
        B: T.Buffer((pieces, lanes, piece), weight_dtype, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:group], B[0:pieces, 0:lanes, 0:piece])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, group):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(
                            B[vk // piece, vi, vk % piece], "int32"
                        )

    return description


def _describe_partial_dot(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group, partial = dot.lanes, dot.group, dot.partial
    in_dtype, weight_dtype, times = (
        dot.input_dtype,
        dot.weight_dtype,
        dot.group // (2 * dot.partial),
    )

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((group,), in_dtype, offset_factor=1),
        B: T.Buffer((lanes, group), weight_dtype, offset_factor=1),
        C: T.Buffer((lanes, partial), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes, 0:partial], A[0:group], B[0:lanes, 0:group])
            T.writes(C[0:lanes, 0:partial])
            for i, p, r, k in T.grid(lanes, partial, times, 2):
                with T.sblock("update"):
                    vi, vp, vr, vk = T.axis.remap("SSRR", [i, p, r, k])
                    C[vi, vp] = C[vi, vp] + T.cast(
                        A[vr * (2 * partial) + vp * 2 + vk], "int32"
                    ) * T.cast(B[vi, vr * (2 * partial) + vp * 2 + vk], "int32")

    return description


def _describe_matrix_product(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group, rows = dot.lanes, dot.group, dot.rows
    in_dtype, weight_dtype = dot.input_dtype, dot.weight_dtype

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((rows, group), in_dtype, offset_factor=1),
        B: T.Buffer((lanes, group), weight_dtype, offset_factor=1),
        C: T.Buffer((lanes // 2, rows, 2), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0 : lanes // 2, 0:rows, 0:2], A[0:rows, 0:group], B[0:lanes, 0:group])
            T.writes(C[0 : lanes // 2, 0:rows, 0:2])
            for p, i, k in T.grid(rows, lanes, group):
                with T.sblock("update"):
                    vp, vi, vk = T.axis.remap("SSR", [p, i, k])
                    C[vi // 2, vp, vi % 2] = C[vi // 2, vp, vi % 2] + T.cast(
                        A[vp, vk], "int32"
                    ) * T.cast(B[vi, vk], "int32")

    return description


def _describe_collect(dot: DotProduct) -> tirx.PrimFunc:
    if dot.rows > 1:
        return _describe_collected_matrices(dot)
    lanes, partial = dot.lanes, dot.partial

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((lanes, partial), "int32", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes, 0:partial])
            T.writes(C[0:lanes])
            for i, p in T.grid(lanes, partial):
                with T.sblock("update"):
                    vi, vp = T.axis.remap("SR", [i, p])
                    C[vi] = C[vi] + A[vi, vp]

    return description


def _describe_collected_matrices(dot: DotProduct) -> tirx.PrimFunc:
    lanes, rows = dot.lanes, dot.rows

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((lanes // 2, rows, 2), "int32", offset_factor=1),
        C: T.Buffer((rows, lanes), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(A[0 : lanes // 2, 0:rows, 0:2])
            T.writes(C[0:rows, 0:lanes])
            for p, i in T.grid(rows, lanes):
                with T.sblock("collect"):
                    vp, vi = T.axis.remap("SS", [p, i])
                    C[vp, vi] = A[vi // 2, vp, vi % 2]

    return description


def _describe_dot_nibbles(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group = dot.lanes, dot.group
    in_dtype, weight_dtype = dot.input_dtype, dot.weight_dtype

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((2 * group,), in_dtype, offset_factor=1),
        B: T.Buffer((lanes, group), "uint8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0 : 2 * group], B[0:lanes, 0:group])
            T.writes(C[0:lanes])
            for s, i, k in T.grid(2, lanes, group):
                with T.sblock("update"):
                    vi, vs, vk = T.axis.remap("SRR", [i, s, k])
                    C[vi] = C[vi] + T.cast(A[vs * group + vk], "int32") * T.cast(
                        T.cast(
                            T.cast(B[vi, vk] >> T.cast(vs * 4, "uint8") & T.uint8(15), "int8")
                            - T.int8(8),
                            weight_dtype,
                        ),
                        "int32",
                    )

    return description


def _describe_chain(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes, 2), "int16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes, 0:2], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes, 0:2])
            for i, h, k in T.grid(lanes, 2, 2):
                with T.sblock("update"):
                    vi, vh, vk = T.axis.remap("SSR", [i, h, k])
                    C[vi, vh] = C[vi, vh] + T.cast(A[vh * 2 + vk], "int16") * T.cast(
                        B[vi, vh * 2 + vk], "int16"
                    )

    return description


def _describe_chain_nibbles(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((8,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "uint8", offset_factor=1),
        C: T.Buffer((lanes, 2), "int16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes, 0:2], A[0:8], B[0:lanes, 0:4])
            T.writes(C[0:lanes, 0:2])
            for s, i, h, k in T.grid(2, lanes, 2, 2):
                with T.sblock("update"):
                    vi, vh, vs, vk = T.axis.remap("SSRR", [i, h, s, k])
                    C[vi, vh] = C[vi, vh] + T.cast(A[vs * 4 + (vh * 2 + vk)], "int16") * T.cast(
                        T.cast(B[vi, vh * 2 + vk] >> T.cast(vs * 4, "uint8") & T.uint8(15), "int8")
                        - T.int8(8),
                        "int16",
                    )

    return description


def _describe_widen(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((lanes, 2), "int16", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes, 0:2])
            T.writes(C[0:lanes])
            for i, h in T.grid(lanes, 2):
                with T.sblock("update"):
                    vi, vh = T.axis.remap("SR", [i, h])
                    C[vi] = C[vi] + T.cast(A[vi, vh], "int32")

    return description


def _describe_scale(dot: DotProduct) -> tirx.PrimFunc:
    lanes = dot.lanes

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((lanes, 2), "int16", offset_factor=1),
        B: T.Buffer((lanes,), "uint8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes, 0:2], B[0:lanes])
            T.writes(C[0:lanes])
            for i, h in T.grid(lanes, 2):
                with T.sblock("update"):
                    vi, vh = T.axis.remap("SR", [i, h])
                    C[vi] = C[vi] + T.cast(A[vi, vh], "int32") * T.cast(B[vi], "int32")

    return description


def _describe_unpack_scaled(dot: DotProduct) -> tirx.PrimFunc:
    lanes, group, weight_dtype = dot.lanes, dot.group, dot.weight_dtype

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((lanes, group), "uint8", offset_factor=1),
        B: T.Buffer((lanes,), "uint8", offset_factor=1),
        C: T.Buffer((2, lanes, group), weight_dtype, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(A[0:lanes, 0:group], B[0:lanes])
            T.writes(C[0:2, 0:lanes, 0:group])
            for s, i, k in T.grid(2, lanes, group):
                with T.sblock("unpack"):
                    vs, vi, vk = T.axis.remap("SSS", [s, i, k])
                    C[vs, vi, vk] = T.cast(
                        T.cast(A[vi, vk] >> T.cast(vs * 4, "uint8") & T.uint8(15), "int8")
                        - T.int8(8),
                        weight_dtype,
                    ) * T.cast(B[vi], weight_dtype)

    return description


_DESCRIPTIONS = {
    Stage.DOT: _describe_dot,
    Stage.DOT_NIBBLES: _describe_dot_nibbles,
    Stage.CHAIN: _describe_chain,
    Stage.CHAIN_NIBBLES: _describe_chain_nibbles,
    Stage.WIDEN: _describe_widen,
    Stage.SCALE: _describe_scale,
    Stage.UNPACK_SCALED: _describe_unpack_scaled,
    Stage.COLLECT: _describe_collect,
    **binary_stages.DESCRIPTIONS,
}
