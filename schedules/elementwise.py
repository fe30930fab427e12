"""Elementwise integer kernels: requantize (one or two terms), multiply, table lookup.

Strategy: 1. if nothing varies along the channels, flatten the tensor, else keep the channels (last
dimension) apart; 2. vectorise the innermost loop; 3. run what is outside in parallel. A table of
bytes is looked up by whole vectors where the target can (`table_lookup`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.schedules import table_lookup
from tvmquant.schedules.epilogue import Epilogue, placeholders
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.loops import (
    PARALLEL_BYTES,
    broadcast_at,
    flat_view,
    lanes_for,
    parallel_chunks,
    product,
    vectorize,
)


@dataclass(frozen=True)
class RequantizeSpec:
    """Equation (3) of `tvmquant.arithmetic` on one or two tensors.

    Parameters
    ----------
    shape : tuple of int
        Shape of the first term and of the result, channels last.
    dtype : str
        Type of the first term: ``"int32"``, ``"uint8"`` or ``"int16"``.
    epilogue : Epilogue
        With ``residual`` for a second term.
    parameter_shape : tuple of int
        Of multiplier, offset and shift: (1,), (C,), or of full rank; broadcast.
    residual_shape : tuple of int, optional
        Shape of the second term, broadcast.
    residual_dtype : str
    """

    shape: tuple[int, ...]
    dtype: str
    epilogue: Epilogue
    parameter_shape: tuple[int, ...] = (1,)
    residual_shape: tuple[int, ...] | None = None
    residual_dtype: str = "uint8"


@dataclass(frozen=True)
class MultiplySpec:
    """``(a - a_zero_point) * (b - b_zero_point)``, broadcasting, with an optional epilogue.

    Parameters
    ----------
    a_shape, b_shape : tuple of int
        uint8 operands, channels last.
    a_zero_point, b_zero_point : int
    epilogue : Epilogue or None
        None: the int32 product.
    parameter_shape : tuple of int
        Of multiplier, offset and shift: (1,) or (C,).
    """

    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    a_zero_point: int
    b_zero_point: int
    epilogue: Epilogue | None
    parameter_shape: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class TableSpec:
    """``values[q]`` for uint8 q and 256 values.

    Parameters
    ----------
    shape : tuple of int
    out_dtype : str
    """

    shape: tuple[int, ...]
    out_dtype: str = "uint8"


Spec = RequantizeSpec | MultiplySpec | TableSpec


@dataclass(frozen=True)
class Tiling:
    """How the loops are run.

    Parameters
    ----------
    lanes : int
        Elements per vector step.
    flatten : bool
        All dimensions are one loop; else all but the last are.
    threads : int
    """

    lanes: int
    flatten: bool
    threads: int


def default_tiling(spec: Spec, target: tvm.target.Target, threads: int) -> Tiling:
    """Return a tiling with two vectors of the compute type per step, enough to hide latencies."""
    epilogue = getattr(spec, "epilogue", None)
    bits = 64 if epilogue is not None and epilogue.compute_dtype == "int64" else 32
    shape = output_shape(spec)
    flatten = all(product(s) == 1 or s == shape for s in _input_shapes(spec))
    extent = product(shape) if flatten else shape[-1]
    return Tiling(lanes_for(extent, 2 * vector_bits(target) // bits), flatten, threads)


def compute(spec: Spec) -> tirx.PrimFunc:
    """Return the computation: data, then the epilogue's inputs (or the table), then the output."""
    if isinstance(spec, TableSpec):
        return _compute_table(spec)
    if isinstance(spec, MultiplySpec):
        return _compute_multiply(spec)
    return _compute_requantize(spec)


def schedule(sch: Schedule, spec: Spec, tiling: Tiling) -> None:
    """Schedule any of the computations; the steps are those of the module's docstring."""
    shape = output_shape(spec)
    loops = sch.get_loops(sch.get_sblock("out"))
    work = 4 * product(shape)
    if tiling.flatten or len(loops) == 1:
        steps = vectorize(sch, sch.fuse(*loops), tiling.lanes)
        parallel_chunks(sch, steps, tiling.threads, work)
        return
    vectorize(sch, loops[-1], tiling.lanes)
    parallel_chunks(sch, sch.fuse(*loops[:-1]), tiling.threads, work)


def byte_table(spec: TableSpec, lanes: int, threads: int) -> tirx.PrimFunc:
    """Return the kernel that looks up ``lanes`` bytes at once (`table_lookup`), tail one by one."""
    q = te.placeholder(spec.shape, "uint8", name="q")
    values = te.placeholder((256,), "uint8", name="values")
    total = product(spec.shape)

    def body(sources: list[Any], destinations: list[Any]) -> tirx.Stmt:
        (flat_q, view_q), (flat_out, view_out) = map(flat_view, (sources[0], destinations[0]))
        step, last = tirx.Var("step", "int32"), tirx.Var("last", "int32")
        index = flat_q.vload([step * lanes], f"uint8x{lanes}")
        whole = flat_out.vstore([step * lanes], table_lookup.lookup(sources[1], index, lanes))
        one = sources[1].vload([flat_q.vload([last]).astype("int32")])
        pays = threads > 1 and total >= 4 * PARALLEL_BYTES
        kind = tirx.ForKind.PARALLEL if pays else tirx.ForKind.SERIAL
        loops = [view_q, view_out, tirx.For(step, 0, total // lanes, kind, whole)]
        if total % lanes:
            first = total // lanes * lanes
            rest = flat_out.vstore([last], one)
            loops.append(tirx.For(last, first, total - first, tirx.ForKind.SERIAL, rest))
        return tirx.SeqStmt(loops)

    out = te.extern(spec.shape, [q, values], body, name="out", dtype="uint8")
    return te.create_prim_func([q, values, out])


def kernel(spec: Spec, target: tvm.target.Target, threads: int) -> tirx.PrimFunc:
    """Return the scheduled kernel for ``threads`` threads."""
    lanes = table_lookup.vector_lanes(target)
    if isinstance(spec, TableSpec) and spec.out_dtype == "uint8" and lanes:
        func = byte_table(spec, lanes, threads)
        return func.with_attr("tvmquant.kernel", f"table_u8_uint8_pshufb{8 * lanes}")
    sch = Schedule(compute(spec))
    schedule(sch, spec, default_tiling(spec, target, threads))
    return sch.mod["main"].with_attr("tvmquant.kernel", _name(spec))


def output_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape of the result."""
    if not isinstance(spec, MultiplySpec):
        return spec.shape
    rank = max(len(spec.a_shape), len(spec.b_shape))
    a = (1,) * (rank - len(spec.a_shape)) + spec.a_shape
    b = (1,) * (rank - len(spec.b_shape)) + spec.b_shape
    return tuple(max(x, y) for x, y in zip(a, b, strict=True))


def _compute_requantize(spec: RequantizeSpec) -> tirx.PrimFunc:
    acc = te.placeholder(spec.shape, spec.dtype, name="acc")
    channels = spec.parameter_shape[-1]
    inputs = placeholders(
        spec.epilogue, channels, spec.residual_shape, spec.residual_dtype, spec.parameter_shape
    )

    def element(*index: Any) -> tirx.PrimExpr:
        value = acc(*index).astype("int32")
        return _finish(spec.epilogue, value, inputs, index)

    return te.create_prim_func([acc, *inputs, te.compute(spec.shape, element, name="out")])


def _compute_multiply(spec: MultiplySpec) -> tirx.PrimFunc:
    a = te.placeholder(spec.a_shape, "uint8", name="a")
    b = te.placeholder(spec.b_shape, "uint8", name="b")
    inputs = placeholders(spec.epilogue, spec.parameter_shape[-1], positional=spec.parameter_shape)

    def element(*index: Any) -> tirx.PrimExpr:
        left = broadcast_at(a, index).astype("int32") - spec.a_zero_point
        right = broadcast_at(b, index).astype("int32") - spec.b_zero_point
        if spec.epilogue is None:
            return left * right
        return _finish(spec.epilogue, left * right, inputs, index)

    return te.create_prim_func([a, b, *inputs, te.compute(output_shape(spec), element, name="out")])


def _compute_table(spec: TableSpec) -> tirx.PrimFunc:
    q = te.placeholder(spec.shape, "uint8", name="q")
    values = te.placeholder((256,), spec.out_dtype, name="values")
    out = te.compute(spec.shape, lambda *i: values[q(*i).astype("int32")], name="out")
    return te.create_prim_func([q, values, out])


def _finish(
    epilogue: Epilogue, acc: tirx.PrimExpr, inputs: list[te.Tensor], index: tuple[Any, ...]
) -> tirx.PrimExpr:
    multiplier, offset, shift = (broadcast_at(tensor, index) for tensor in inputs[:3])
    rest = inputs[3:]
    residual = None
    if epilogue.residual:
        residual = (broadcast_at(rest[0], index), broadcast_at(rest[1], index))
        rest = rest[2:]
    table = rest[0] if epilogue.table else None
    return epilogue.apply(acc, multiplier, offset, shift, residual, table)


def _input_shapes(spec: Spec) -> list[tuple[int, ...]]:
    if isinstance(spec, TableSpec):
        return []
    if isinstance(spec, MultiplySpec):
        return [spec.a_shape, spec.b_shape, spec.parameter_shape]
    residual = [] if spec.residual_shape is None else [spec.residual_shape]
    return [spec.parameter_shape, *residual]


def _name(spec: Spec) -> str:
    if isinstance(spec, TableSpec):
        return f"table_u8_{spec.out_dtype}"
    if isinstance(spec, MultiplySpec):
        return "multiply_u8u8s32" + ("" if spec.epilogue is None else "_requantize")
    terms = f"{spec.dtype}_{spec.residual_dtype}" if spec.epilogue.residual else spec.dtype
    return f"requantize_{terms}_{spec.epilogue.out_dtype}"
