"""Kernels that only move 8- and 16-bit integers: concat, nearest resize, pad, slice, permute.

Strategy: 1. what is contiguous in source and destination alike is moved in whole vectors; 2. the
rest of the loops run in parallel. A permutation that moves the last dimension reads in strides; it
is tiled, so that every line of the cache that is fetched is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import (
    PARALLEL_BYTES,
    flat_view,
    lanes_for,
    overlap_tails,
    overlapping_lanes,
    product,
    vectorize,
)

# a square tile of bytes of this side lies in 16 lines of either tensor
TRANSPOSE_TILE = 16


@dataclass(frozen=True)
class ConcatSpec:
    """Concatenation along an axis.

    Parameters
    ----------
    shapes : tuple of tuple of int
        Of the inputs.
    axis : int
        >= 0.
    dtype : str
    """

    shapes: tuple[tuple[int, ...], ...]
    axis: int
    dtype: str = "uint8"


@dataclass(frozen=True)
class ResizeSpec:
    """Nearest resize of an NHWC tensor; the arguments are ``(x, rows, columns, output)``.

    Parameters
    ----------
    shape : tuple of int
        (N, H, W, C).
    out_size : tuple of int
        (OH, OW): the int32 vectors ``rows`` and ``columns`` hold the source of each row and column.
    dtype : str
    """

    shape: tuple[int, int, int, int]
    out_size: tuple[int, int]
    dtype: str = "uint8"


@dataclass(frozen=True)
class PadSpec:
    """Padding with a constant or with the tensor's own values.

    Parameters
    ----------
    shape : tuple of int
    before, after : tuple of int
        Per dimension, >= 0; for ``reflect`` below the extent, for ``circular`` up to it.
    value : int
        What ``constant`` pads with.
    dtype : str
    mode : {"constant", "reflect", "replicate", "circular"}
    """

    shape: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    value: int
    dtype: str = "uint8"
    mode: str = "constant"


@dataclass(frozen=True)
class SliceSpec:
    """``x[begin : begin + step * extent : step]`` in every dimension.

    Parameters
    ----------
    shape : tuple of int
    begin, step, extent : tuple of int
        Per dimension; a step may be negative.
    dtype : str
    """

    shape: tuple[int, ...]
    begin: tuple[int, ...]
    step: tuple[int, ...]
    extent: tuple[int, ...]
    dtype: str = "uint8"


@dataclass(frozen=True)
class PermuteSpec:
    """Output dimension i is input dimension ``axes[i]``.

    Parameters
    ----------
    shape : tuple of int
        Of the input.
    axes : tuple of int
    dtype : str
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str = "uint8"


ElementSpec: TypeAlias = ResizeSpec | PadSpec | SliceSpec | PermuteSpec
Spec: TypeAlias = ConcatSpec | ElementSpec


# In the names of kernels, and in reports.
_NAMES: dict[type[Spec], tuple[str, str]] = {
    ConcatSpec: ("concat", "concat"),
    ResizeSpec: ("resize", "resize2d"),
    PadSpec: ("pad", "pad"),
    SliceSpec: ("slice", "strided_slice"),
    PermuteSpec: ("permute", "transpose"),
}


@dataclass(frozen=True)
class Tiling:
    """How elements are moved.

    Parameters
    ----------
    lanes : int
        Elements per vector step.
    threads : int
    """

    lanes: int
    threads: int


def default_tiling(spec: Spec, machine: Machine) -> Tiling:
    """Return a tiling that moves one full register per step."""
    shape = output_shape(spec)
    size = 2 if spec.dtype == "int16" else 1
    widest = vector_bits(machine.target) // (8 * size)
    pays = size * product(shape) >= 2 * PARALLEL_BYTES
    if isinstance(spec, ConcatSpec):
        return Tiling(lanes_for(shape[-1], widest), machine.threads if pays else 1)
    return Tiling(overlapping_lanes(shape[-1], widest), machine.threads if pays else 1)


def output_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape of the result."""
    if isinstance(spec, ConcatSpec):
        total = sum(shape[spec.axis] for shape in spec.shapes)
        return (*spec.shapes[0][: spec.axis], total, *spec.shapes[0][spec.axis + 1 :])
    if isinstance(spec, ResizeSpec):
        return (spec.shape[0], *spec.out_size, spec.shape[3])
    if isinstance(spec, PadSpec):
        return tuple(sum(v) for v in zip(spec.shape, spec.before, spec.after, strict=True))
    if isinstance(spec, SliceSpec):
        return spec.extent
    return tuple(spec.shape[axis] for axis in spec.axes)


def compute(spec: ElementSpec) -> tirx.PrimFunc:
    """Return the computation of any of the specifications but concatenation."""
    x = te.placeholder(spec.shape, spec.dtype, name="x")
    shape = output_shape(spec)
    inputs = [x]
    if isinstance(spec, ResizeSpec):
        rows = te.placeholder((spec.out_size[0],), "int32", name="rows")
        columns = te.placeholder((spec.out_size[1],), "int32", name="columns")
        inputs += [rows, columns]

    def element(*index: Any) -> tirx.PrimExpr:
        if isinstance(spec, ResizeSpec):
            return x[index[0], rows[index[1]], columns[index[2]], index[3]]
        if isinstance(spec, SliceSpec):
            return x(*[b + i * s for b, i, s in zip(spec.begin, index, spec.step, strict=True)])
        if isinstance(spec, PermuteSpec):
            return x(*[index[spec.axes.index(axis)] for axis in range(len(index))])
        source = [i - b for i, b in zip(index, spec.before, strict=True)]
        if spec.mode != "constant":
            pads = zip(source, spec.shape, spec.before, spec.after, strict=True)
            return x(*[_inside(spec.mode, i, n) if b or a else i for i, n, b, a in pads])
        inside = [
            condition
            for i, (extent, before, after) in enumerate(
                zip(spec.shape, spec.before, spec.after, strict=True)
            )
            for condition in (source[i] >= 0, source[i] < extent)
            if before or after
        ]
        value = tirx.const(spec.value, spec.dtype)
        return tirx.if_then_else(tirx.all(*inside), x(*source), value) if inside else x(*source)

    return te.create_prim_func([*inputs, te.compute(shape, element, name="out")])


def _inside(mode: str, at: Any, extent: int) -> Any:
    """Return whose value stands at a position beyond the extent, which may be negative."""
    last = extent - 1
    if mode == "reflect":
        return last - tirx.abs(last - tirx.abs(at))
    if mode == "replicate":
        return tirx.max(tirx.min(at, last), 0)
    return tirx.truncmod(at + extent, extent)


def schedule(sch: Schedule, spec: Spec, tiling: Tiling) -> None:
    """Schedule the computation; the steps are those of the module's docstring."""
    loops = list(sch.get_loops(sch.get_sblock("out")))
    if isinstance(spec, PermuteSpec) and spec.axes[-1] != len(loops) - 1:
        moved = spec.axes.index(len(loops) - 1)
        outer, inner = sch.split(loops[-1], [None, _tile(spec.shape[spec.axes[-1]])])
        other_outer, other_inner = sch.split(loops[moved], [None, _tile(spec.shape[-1])])
        loops[moved] = other_outer
        sch.reorder(*loops[:-1], outer, other_inner, inner)
        sch.vectorize(inner)
        loops[-1] = outer
        if tiling.threads > 1:
            sch.parallel(sch.fuse(*loops))
        return
    steps = vectorize(sch, loops[-1], tiling.lanes)
    if tiling.threads > 1:
        sch.parallel(sch.fuse(*loops[:-1]) if len(loops) > 1 else steps)


def concat(spec: ConcatSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the scheduled concatenation.

    Written as loops instead of a computation, which can only choose among the inputs for every
    element. All tensors are seen as matrices of ``outer`` rows: a row of the output is a row of
    each input, one after the other.
    """
    outer = product(spec.shapes[0][: spec.axis])
    runs = [product(shape[spec.axis :]) for shape in spec.shapes]
    inputs = [te.placeholder(s, spec.dtype, name=f"x{i}") for i, s in enumerate(spec.shapes)]

    def body(sources: list[Any], destinations: list[Any]) -> tirx.Stmt:
        flat, views = zip(*map(flat_view, (*sources, *destinations)), strict=True)
        row = tirx.Var("row", "int32")
        copies, start = [], 0
        for source, run in zip(flat[:-1], runs, strict=True):
            parallel = tiling.threads > 1 and outer == 1
            copies += _copy(
                flat[-1], row * sum(runs) + start, source, row * run, run, tiling.lanes, parallel
            )
            start += run
        kind = tirx.ForKind.PARALLEL if tiling.threads > 1 and outer > 1 else tirx.ForKind.SERIAL
        moves = tirx.SeqStmt(copies) if len(copies) > 1 else copies[0]
        return tirx.SeqStmt([*views, tirx.For(row, 0, outer, kind, moves)])

    out = te.extern(output_shape(spec), inputs, body, name="out", dtype=spec.dtype)
    return te.create_prim_func([*inputs, out])


def kernel(spec: Spec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    tiling = default_tiling(spec, machine)
    if isinstance(spec, ConcatSpec):
        func = concat(spec, tiling)
    else:
        sch = Schedule(compute(spec))
        schedule(sch, spec, tiling)
        func = overlap_tails(sch.mod["main"])
    name, operation = _NAMES[type(spec)]
    return with_facts(func, f"{name}_{spec.dtype}", operation)


def _tile(extent: int) -> int:
    return overlapping_lanes(extent, TRANSPOSE_TILE)


def _copy(
    target: Any, to: Any, source: Any, start: Any, count: int, lanes: int, parallel: bool
) -> list[tirx.Stmt]:
    """Return loops that move ``count`` elements in vectors, the tail in ever smaller ones."""
    stmts, done = [], 0
    while done < count:
        while lanes > count - done:
            lanes //= 2
        steps = (count - done) // lanes
        step = tirx.Var("step", "int32")
        offset = done + step * lanes
        vector = f"{source.dtype}x{lanes}" if lanes > 1 else str(source.dtype)
        move = target.vstore([to + offset], source.vload([start + offset], vector))
        kind = tirx.ForKind.PARALLEL if parallel and steps > 1 else tirx.ForKind.SERIAL
        stmts.append(tirx.For(step, 0, steps, kind, move))
        done += steps * lanes
    return stmts
