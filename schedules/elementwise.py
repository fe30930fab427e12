"""Elementwise integer kernels: requantize (one or two terms), multiply, table lookup.

Strategy: 1. if nothing varies along the channels and vectors do not divide them, see all tensors as
one-dimensional, else keep the channels (last dimension) apart; 2. vectorise the innermost loop;
3. run what is outside in parallel. A table of bytes is looked up by whole vectors where the target
can (`isa.ByteLookup`).

Rejected: fusing the loops of a tensor of rank 4 instead of seeing it as one-dimensional. Where the
lanes do not divide the channels, the indices do not simplify and LLVM gathers byte by byte (14
times as long).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules.epilogue import Epilogue, placeholders
from tvmquant.schedules.isa import ByteLookup, byte_lookup, vector_bits
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import (
    PARALLEL_BYTES,
    broadcast_at,
    flat_loop,
    flat_view,
    overlap_tails,
    overlapping_lanes,
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
        Shape of the result, channels last.
    dtype : str
        Type of the first term: ``"int32"``, ``"uint8"`` or ``"int16"``.
    epilogue : Epilogue
        With ``residual`` for a second term.
    parameter_shape : tuple of int
        Of multiplier, offset and shift: (1,), (C,), or of full rank; broadcast.
    residual_shape : tuple of int, optional
        Shape of the second term, broadcast.
    residual_dtype : str
    acc_shape : tuple of int, optional
        Shape of the first term where it is not the result's: broadcast.
    """

    shape: tuple[int, ...]
    dtype: str
    epilogue: Epilogue
    parameter_shape: tuple[int, ...] = (1,)
    residual_shape: tuple[int, ...] | None = None
    residual_dtype: str = "uint8"
    acc_shape: tuple[int, ...] | None = None


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
        Of multiplier, offset and shift: (1,), (C,), or of full rank; broadcast.
    residual_dtype : str
        Of the second term of the epilogue, which has the product's shape.
    """

    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    a_zero_point: int
    b_zero_point: int
    epilogue: Epilogue | None
    parameter_shape: tuple[int, ...] = (1,)
    residual_dtype: str = "uint8"


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
        The tensors are one-dimensional; else all dimensions but the last are one loop.
    threads : int
    """

    lanes: int
    flatten: bool
    threads: int


def default_tiling(spec: Spec, machine: Machine) -> Tiling:
    """Return a tiling with two vectors of the compute type per step, enough to hide latencies."""
    epilogue = getattr(spec, "epilogue", None)
    vector = vector_bits(machine.target) // (
        64 if epilogue is not None and epilogue.compute_dtype == "int64" else 32
    )
    shape = output_shape(spec)
    total = product(shape)
    flat = all(product(t.shape) in (1, total) for t in _operands(spec)[0])
    flatten = flat and bool(shape[-1] % vector or product(shape[:-1]) == 1)
    extent = total if flatten else shape[-1]
    return Tiling(overlapping_lanes(extent, 2 * vector), flatten, machine.threads)


def compute(spec: Spec) -> tirx.PrimFunc:
    """Return the computation: data, then the epilogue's inputs (or the table), then the output."""
    operands, table = _operands(spec)

    def element(*index: Any) -> tirx.PrimExpr:
        return _value(spec, [broadcast_at(t, index) for t in operands], table)

    out = te.compute(output_shape(spec), element, name="out")
    return te.create_prim_func([*operands, *([] if table is None else [table]), out])


def schedule(sch: Schedule, spec: Spec, tiling: Tiling) -> None:
    """Schedule any of the computations whose channels are kept apart."""
    loops = sch.get_loops(sch.get_sblock("out"))
    vectorize(sch, loops[-1], tiling.lanes)
    if len(loops) > 1:
        work = 4 * product(output_shape(spec))
        parallel_chunks(sch, sch.fuse(*loops[:-1]), tiling.threads, work)


def flattened(spec: Spec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the kernel that sees all tensors as one-dimensional, or as one value."""
    operands, table = _operands(spec)
    inputs = [*operands, *([] if table is None else [table])]
    parallel = tiling.threads > 1 and 4 * product(output_shape(spec)) >= PARALLEL_BYTES

    def body(sources: list[Any], destinations: list[Any]) -> tirx.Stmt:
        whole = [*sources[: len(operands)], *destinations]
        (*flat, out), views = zip(*map(flat_view, whole), strict=True)
        values = sources[-1] if table is not None else None

        def element(index: Any) -> tirx.PrimExpr:
            read = [view[0 if int(view.shape[0]) == 1 else index] for view in flat]
            return _value(spec, read, values)

        return tirx.SeqStmt([*views, flat_loop(out, tiling.lanes, element, parallel=parallel)])

    out = te.extern(output_shape(spec), inputs, body, name="out", dtype=_out_dtype(spec))
    return te.create_prim_func([*inputs, out])


def byte_table(spec: TableSpec, way: ByteLookup, threads: int) -> tirx.PrimFunc:
    """Return the kernel that looks up whole vectors of bytes."""
    lanes = way.lanes
    q = te.placeholder(spec.shape, "uint8", name="q")
    values = te.placeholder((256,), "uint8", name="values")
    total = product(spec.shape)

    def body(sources: list[Any], destinations: list[Any]) -> tirx.Stmt:
        (flat_q, view_q), (flat_out, view_out) = map(flat_view, (sources[0], destinations[0]))
        step, last = tirx.Var("step", "int32"), tirx.Var("last", "int32")
        if total < lanes:
            one = sources[1].vload([flat_q.vload([last]).astype("int32")])
            loop = tirx.For(last, 0, total, tirx.ForKind.SERIAL, flat_out.vstore([last], one))
            return tirx.SeqStmt([view_q, view_out, loop])
        # the last step overlaps the one before it
        start = tirx.min(step * lanes, total - lanes) if total % lanes else step * lanes
        index = flat_q.vload([start], f"uint8x{lanes}")
        whole = flat_out.vstore([start], way.look_up(sources[1], index, lanes))
        pays = threads > 1 and 2 * total >= PARALLEL_BYTES
        kind = tirx.ForKind.PARALLEL if pays else tirx.ForKind.SERIAL
        return tirx.SeqStmt([view_q, view_out, tirx.For(step, 0, -(-total // lanes), kind, whole)])

    out = te.extern(spec.shape, [q, values], body, name="out", dtype="uint8")
    return te.create_prim_func([q, values, out])


def kernel(spec: Spec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    way = byte_lookup(machine.target)
    if isinstance(spec, TableSpec) and spec.out_dtype == "uint8" and way:
        func = byte_table(spec, way, machine.threads)
        return with_facts(func, f"table_u8_uint8_{way.name}", "table")
    tiling = default_tiling(spec, machine)
    if tiling.flatten:
        func = flattened(spec, tiling)
    else:
        sch = Schedule(compute(spec))
        schedule(sch, spec, tiling)
        func = overlap_tails(sch.mod["main"])
    return with_facts(func, *_names(spec))


def output_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape of the result."""
    if not isinstance(spec, MultiplySpec):
        return spec.shape
    rank = max(len(spec.a_shape), len(spec.b_shape))
    a = (1,) * (rank - len(spec.a_shape)) + spec.a_shape
    b = (1,) * (rank - len(spec.b_shape)) + spec.b_shape
    return tuple(max(x, y) for x, y in zip(a, b, strict=True))


def _operands(spec: Spec) -> tuple[list[te.Tensor], te.Tensor | None]:
    """Return what broadcasts to the output, in argument order, and the table, the last argument."""
    if isinstance(spec, TableSpec):
        q = te.placeholder(spec.shape, "uint8", name="q")
        return [q], te.placeholder((256,), spec.out_dtype, name="values")
    epilogue = spec.epilogue
    if isinstance(spec, MultiplySpec):
        data = [
            te.placeholder(spec.a_shape, "uint8", name="a"),
            te.placeholder(spec.b_shape, "uint8", name="b"),
        ]
        extra = placeholders(
            epilogue, spec.parameter_shape[-1], output_shape(spec), spec.residual_dtype,
            spec.parameter_shape,
        )  # fmt: skip
    else:
        data = [te.placeholder(spec.acc_shape or spec.shape, spec.dtype, name="acc")]
        extra = placeholders(
            epilogue, spec.parameter_shape[-1], spec.residual_shape, spec.residual_dtype,
            spec.parameter_shape,
        )  # fmt: skip
    if epilogue is not None and epilogue.table:
        return [*data, *extra[:-1]], extra[-1]
    return [*data, *extra], None


def _value(spec: Spec, operands: list[Any], table: Any) -> tirx.PrimExpr:
    """Return an element of the result from those that `_operands` gives it."""
    if isinstance(spec, TableSpec):
        return table[operands[0].astype("int32")]
    if isinstance(spec, MultiplySpec):
        a, b, *parameters = operands
        left = a.astype("int32") - spec.a_zero_point
        total, epilogue = left * (b.astype("int32") - spec.b_zero_point), spec.epilogue
    else:
        acc, *parameters = operands
        total, epilogue = acc.astype("int32"), spec.epilogue
    if epilogue is None:
        return total
    multiplier, offset, shift, *others = parameters
    second = (others[0], others[1]) if epilogue.residual else None
    negative = others[0] if epilogue.slopes else None
    return epilogue.apply(total, multiplier, offset, shift, second, table, negative)


def _out_dtype(spec: Spec) -> str:
    if isinstance(spec, TableSpec):
        return spec.out_dtype
    return "int32" if spec.epilogue is None else spec.epilogue.out_dtype


def _names(spec: Spec) -> tuple[str, str]:
    """Return the name and the operation of a kernel."""
    if isinstance(spec, TableSpec):
        return f"table_u8_{spec.out_dtype}", "table"
    if isinstance(spec, MultiplySpec):
        return "multiply_u8u8s32" + ("" if spec.epilogue is None else "_requantize"), "multiply"
    terms = f"{spec.dtype}_{spec.residual_dtype}" if spec.epilogue.residual else spec.dtype
    slopes = "_slopes" if spec.epilogue.slopes else ""
    return f"requantize_{terms}_{spec.epilogue.out_dtype}{slopes}", "requantize"
