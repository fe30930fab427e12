"""Pooling over NHWC tensors: maximum, and sums (the integer part of average pooling).

Strategy: 1. rows of the output run in parallel, or blocks of channels where there are few rows
(global pooling); 2. the accumulators of one block of channels stay in registers over the whole
window; 3. channels are vectorised.

Padding: it never wins a maximum. Where the window is not dilated its rows are clamped to the image
instead of tested: the nearest row of the image lies in the window, and a maximum does not mind
seeing it twice. A sum tests, once per vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules.epilogue import Epilogue, placeholders
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import PARALLEL_BYTES, broadcast_at, lanes_for

UNROLLED_TAPS = 25


@dataclass(frozen=True)
class PoolSpec:
    """A pooling window over an NHWC tensor.

    Parameters
    ----------
    shape : tuple of int
        (N, H, W, C).
    pool_size, strides, dilation : tuple of int
        Vertical and horizontal.
    padding : tuple of int
        Top, left, bottom, right; bottom and right are implied by ``out_size``.
    out_size : tuple of int
        (OH, OW), so that either rounding of the output extent can be had.
    dtype : str
        Type of the input: ``"uint8"`` or ``"int16"``; a maximum has the same type.
    """

    shape: tuple[int, int, int, int]
    pool_size: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    out_size: tuple[int, int]
    dtype: str = "uint8"


@dataclass(frozen=True)
class MaxPoolSpec(PoolSpec):
    """The maximum of each window; a window outside the image gives the least value of the type."""


@dataclass(frozen=True)
class SumPoolSpec(PoolSpec):
    """The sum of ``x - zero_point`` over each window, int32; padding adds nothing.

    Parameters
    ----------
    zero_point : int
    epilogue : Epilogue or None
    parameter_shape : tuple of int
        Of multiplier, offset and shift: (1,), (C,), or (1, OH, OW, 1) where the divisor varies.
    residual_dtype : str
        Type of the second term, where the epilogue has one.
    """

    zero_point: int = 0
    epilogue: Epilogue | None = None
    parameter_shape: tuple[int, ...] = (1,)
    residual_dtype: str = "uint8"


@dataclass(frozen=True)
class Tiling:
    """How a pooling kernel is run.

    Parameters
    ----------
    lanes : int
        Channels per vector step, whose accumulators stay in registers.
    channels_outside : bool
        Blocks of channels, not rows, are the parallel loop.
    unroll : bool
        Unroll the window.
    threads : int
    """

    lanes: int
    channels_outside: bool
    unroll: bool
    threads: int


def default_tiling(spec: PoolSpec, machine: Machine) -> Tiling:
    """Return a tiling that fills registers: one of bytes for maxima, two of int32 for sums."""
    bits = vector_bits(machine.target)
    sums = isinstance(spec, SumPoolSpec)
    widest = 2 * bits // 32 if sums else bits // (8 if spec.dtype == "uint8" else 16)
    n, _, _, channels = spec.shape
    # a single wide block per pixel would leave nothing to run in parallel
    outside = n * spec.out_size[0] < min(machine.threads, channels // widest)
    taps = spec.pool_size[0] * spec.pool_size[1]
    work = n * spec.out_size[0] * spec.out_size[1] * channels * taps
    return Tiling(
        lanes_for(channels, widest),
        outside,
        taps <= UNROLLED_TAPS,
        machine.threads if work >= 2 * PARALLEL_BYTES else 1,
    )


def compute(spec: PoolSpec) -> tirx.PrimFunc:
    """Return the computation: ``(x, output)``, with the epilogue's inputs between them."""
    x = te.placeholder(spec.shape, spec.dtype, name="x")
    ry = te.reduce_axis((0, spec.pool_size[0]), name="ry")
    rx = te.reduce_axis((0, spec.pool_size[1]), name="rx")
    out_shape = (spec.shape[0], *spec.out_size, spec.shape[3])
    if isinstance(spec, SumPoolSpec):
        return _compute_sum(spec, x, ry, rx, out_shape)
    least = tirx.const(0 if spec.dtype == "uint8" else -(2**15), spec.dtype)

    def maximum(n: Any, h: Any, w: Any, c: Any) -> tirx.PrimExpr:
        row, column, inside = _window(spec, h, w, ry, rx)
        if spec.dilation == (1, 1) and _windows_touch(spec):
            row = te.max(te.min(row, spec.shape[1] - 1), 0)
            column = te.max(te.min(column, spec.shape[2] - 1), 0)
            return te.max(x[n, row, column, c], axis=[ry, rx])
        return te.max(tirx.if_then_else(inside, x[n, row, column, c], least), axis=[ry, rx])

    return te.create_prim_func([x, te.compute(out_shape, maximum, name="pool")])


def schedule(sch: Schedule, spec: PoolSpec, tiling: Tiling) -> None:
    """Schedule either computation; the steps are those of the module's docstring."""
    pool = sch.get_sblock("pool")
    if getattr(spec, "epilogue", None) is not None:
        out = sch.get_sblock("out")
        sch.set_scope(pool, 0, "local")
    else:
        out = sch.cache_write(pool, 0, "local")
    n, h, w, c = sch.get_loops(out)
    outer, inner = sch.split(c, [None, tiling.lanes])
    if spec.shape[3] % tiling.lanes:
        sch.annotate(outer, "pragma_loop_partition_hint", 1)
    if tiling.channels_outside:
        sch.reorder(outer, n, h, w)
    sch.compute_at(pool, w if tiling.channels_outside else outer, preserve_unit_loops=True)
    lanes, ry, rx = sch.get_loops(pool)[-3:]
    sch.reorder(ry, rx, lanes)
    parallel = outer if tiling.channels_outside else sch.fuse(n, h)
    if tiling.threads > 1:
        sch.parallel(parallel)
    sch.vectorize(inner)
    sch.vectorize(lanes)
    init = sch.decompose_reduction(pool, ry)
    sch.vectorize(sch.get_loops(init)[-1])
    if tiling.unroll:
        sch.unroll(ry)
        sch.unroll(rx)


def kernel(spec: PoolSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    sch = Schedule(compute(spec))
    schedule(sch, spec, default_tiling(spec, machine))
    operation = "sum_pool2d" if isinstance(spec, SumPoolSpec) else "max_pool2d"
    name = operation + ("_nhwc_u8s32" if isinstance(spec, SumPoolSpec) else "_nhwc")
    if getattr(spec, "epilogue", None) is not None:
        name += "_requantize"
    return with_facts(sch.mod["main"], name, operation)


def _compute_sum(
    spec: SumPoolSpec, x: te.Tensor, ry: Any, rx: Any, out_shape: tuple[int, ...]
) -> tirx.PrimFunc:
    padded = not _always_inside(spec)
    zero = tirx.const(0, "int32")

    def total(n: Any, h: Any, w: Any, c: Any) -> tirx.PrimExpr:
        row, column, inside = _window(spec, h, w, ry, rx)
        value = x[n, row, column, c].astype("int32") - spec.zero_point
        return te.sum(tirx.if_then_else(inside, value, zero) if padded else value, axis=[ry, rx])

    pool = te.compute(out_shape, total, name="pool")
    epilogue = spec.epilogue
    if epilogue is None:
        return te.create_prim_func([x, pool])
    parameters = spec.parameter_shape
    inputs = placeholders(epilogue, parameters[-1], out_shape, spec.residual_dtype, parameters)

    def element(*index: Any) -> tirx.PrimExpr:
        multiplier, offset, shift, *second = (
            broadcast_at(t, index) for t in inputs[: 5 if epilogue.residual else 3]
        )
        residual = (second[0], second[1]) if epilogue.residual else None
        table = inputs[-1] if epilogue.table else None
        return epilogue.apply(pool(*index), multiplier, offset, shift, residual, table)

    return te.create_prim_func([x, *inputs, te.compute(out_shape, element, name="out")])


def _window(spec: PoolSpec, h: Any, w: Any, ry: Any, rx: Any) -> tuple[Any, Any, Any]:
    """Return row and column of a tap, and whether they lie in the image."""
    row = h * spec.strides[0] + ry * spec.dilation[0] - spec.padding[0]
    column = w * spec.strides[1] + rx * spec.dilation[1] - spec.padding[1]
    height, width = spec.shape[1:3]
    return row, column, tirx.all(row >= 0, row < height, column >= 0, column < width)


def _last(spec: PoolSpec, axis: int) -> int:
    """First position of the last window along an axis."""
    return (spec.out_size[axis] - 1) * spec.strides[axis] - spec.padding[axis]


def _windows_touch(spec: PoolSpec) -> bool:
    """Whether every window has a part in the image."""
    return all(
        _last(spec, i) < spec.shape[1 + i] and spec.padding[i] < spec.pool_size[i] for i in (0, 1)
    )


def _always_inside(spec: PoolSpec) -> bool:
    return spec.padding[:2] == (0, 0) and all(
        _last(spec, i) + spec.dilation[i] * (spec.pool_size[i] - 1) < spec.shape[1 + i]
        for i in (0, 1)
    )
