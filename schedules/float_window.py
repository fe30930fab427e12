"""Float32 operators that slide a window over each channel by itself, NHWC, for float builds.

Depthwise convolution, maximum and average share one computation, ``out = finish(reduce(window))``,
and one schedule:

1. A task is a block of output rows by a block of channels; tasks run in parallel.
2. Padding copies the input rows of a task into a small buffer, so that the window has no branches;
   an unpadded window reads its input in place.
3. A tile of output columns by one vector of channels stays in registers over the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules.epilogue import FloatEpilogue, placeholders
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import with_facts

# Share of the second-level cache that the padded rows of a task stay in.
ROWS = 1 / 8
# Channels of a task: two lines of the cache from every pixel.
BLOCK_CHANNELS = 32
WIDEST_TILE = 8
UNROLLED_TAPS = 25


@dataclass(frozen=True)
class FloatWindowSpec:
    """Static parameters of the operator.

    Parameters
    ----------
    operation : str
        ``"depthwise_conv2d"``, ``"max_pool2d"`` or ``"avg_pool2d"``.
    shape : tuple of int
        (N, H, W, C) of the input.
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
        Bottom and right are implied by ``out_size``, so that either rounding of it can be had.
    out_size : (int, int)
    outputs : int
        Output channels, a multiple of the input's.
    epilogue : FloatEpilogue
    count_include_pad : bool
        An average divides by the area of the window, also where padding is part of it.
    """

    operation: str
    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    out_size: tuple[int, int]
    outputs: int
    epilogue: FloatEpilogue
    count_include_pad: bool = False

    def reach(self, axis: int) -> int:
        """Return the extent of padded input that all windows together cover along an axis."""
        last = (self.out_size[axis] - 1) * self.strides[axis]
        return last + (self.kernel[axis] - 1) * self.dilation[axis] + 1

    @property
    def padded(self) -> bool:
        """Whether some window leaves the image."""
        fits = all(self.reach(axis) <= self.shape[1 + axis] for axis in (0, 1))
        return self.padding[:2] != (0, 0) or not fits


@dataclass(frozen=True)
class Tiling:
    """How the loops are cut.

    Parameters
    ----------
    lanes : int
        Channels per vector; divides them.
    column_tile : int
        Output columns accumulated together; divides them.
    row_block, channel_block : int
        Output rows and channels of a task; they divide theirs.
    threads : int
    """

    lanes: int
    column_tile: int
    row_block: int
    channel_block: int
    threads: int


def default_tiling(spec: FloatWindowSpec, machine: Machine) -> Tiling:
    """Choose a tiling by exact division, without measuring."""
    lanes = math.gcd(spec.outputs, vector_bits(machine.target) // 32)
    channel_block = lanes * _divisor(spec.outputs // lanes, max(1, BLOCK_CHANNELS // lanes))
    row_bytes = 4 * channel_block * spec.reach(1) * spec.strides[0]
    row_block = _divisor(
        spec.out_size[0], max(1, min(8, int(ROWS * machine.caches.second_level) // row_bytes))
    )
    column_tile = _divisor(spec.out_size[1], WIDEST_TILE)
    return Tiling(lanes, column_tile, row_block, channel_block, machine.threads)


def _divisor(extent: int, limit: int) -> int:
    return max(d for d in range(1, min(extent, limit) + 1) if extent % d == 0)


def compute(spec: FloatWindowSpec) -> tirx.PrimFunc:
    """Define the operator: blocks ``rows`` (if padded), ``acc`` and ``out``.

    Arguments of the function: x; for a convolution weight of shape (kh, kw, O) and bias of (O,);
    the residual if there is one; and last the output.
    """
    x = te.placeholder(spec.shape, "float32", name="x")
    outputs, channels = spec.outputs, spec.shape[3]
    convolves, averages = spec.operation == "depthwise_conv2d", spec.operation == "avg_pool2d"
    weight = te.placeholder((*spec.kernel, outputs), "float32", name="weight")
    bias = te.placeholder((outputs,), "float32", name="bias")
    out_shape = (spec.shape[0], *spec.out_size, outputs)
    extra = placeholders(spec.epilogue, outputs, out_shape)
    ry = te.reduce_axis((0, spec.kernel[0]), "ry")
    rx = te.reduce_axis((0, spec.kernel[1]), "rx")
    source = _padded_rows(x, spec) if spec.padded else x

    def window(n: Any, h: Any, w: Any, o: Any) -> Any:
        row = h * spec.strides[0] + ry * spec.dilation[0]
        column = w * spec.strides[1] + rx * spec.dilation[1]
        value = source[n, row, column, o if outputs == channels else o // (outputs // channels)]
        if convolves:
            return te.sum(value * weight[ry, rx, o], axis=[ry, rx])
        return (te.sum if averages else te.max)(value, axis=[ry, rx])

    acc = te.compute(out_shape, window, name="acc")

    def finish(n: Any, h: Any, w: Any, o: Any) -> Any:
        total = acc[n, h, w, o]
        if convolves:
            total = total + bias[o]
        elif averages:
            total = total / _area(spec, h, w)
        return spec.epilogue.apply(total, *(t[n, h, w, o] for t in extra))

    out = te.compute(out_shape, finish, name="out")
    return te.create_prim_func([x, *([weight, bias] if convolves else []), *extra, out])


def _padded_rows(x: te.Tensor, spec: FloatWindowSpec) -> te.Tensor:
    n, height, width, channels = spec.shape
    top, left = spec.padding[:2]
    filler = np.finfo(np.float32).min if spec.operation == "max_pool2d" else 0.0

    def value(n: Any, h: Any, w: Any, c: Any) -> Any:
        row, column = h - top, w - left
        inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
        return te.if_then_else(inside, x[n, row, column, c], tirx.const(float(filler), "float32"))

    return te.compute((n, spec.reach(0), spec.reach(1), channels), value, name="rows")


def _area(spec: FloatWindowSpec, h: Any, w: Any) -> tirx.PrimExpr:
    """Return how many elements the window at an output position averages."""
    if not spec.padded:
        return tirx.const(float(spec.kernel[0] * spec.kernel[1]), "float32")
    # a window that reaches past the last row of padding is cut there, whatever is counted
    counts = []
    for axis, position in enumerate((h, w)):
        before, after = spec.padding[axis], spec.padding[2 + axis]
        low, high = (-before, after) if spec.count_include_pad else (0, 0)
        step, extent = spec.dilation[axis], spec.shape[1 + axis] + high
        first = position * spec.strides[axis] - before
        skipped = tirx.floordiv(te.max(low - first, 0) + step - 1, step)
        within = tirx.floordiv(extent - 1 - first, step) + 1
        counts.append(te.max(te.min(within, spec.kernel[axis]) - skipped, 1))
    return (counts[0] * counts[1]).astype("float32")


def schedule(sch: Schedule, spec: FloatWindowSpec, tiling: Tiling) -> None:
    """Schedule `compute` (steps 1-3 of the module's description)."""
    acc, out = sch.get_sblock("acc"), sch.get_sblock("out")
    n, h, w, o, ry, rx = sch.get_loops(acc)
    h_out, h_in = sch.split(h, [None, tiling.row_block])
    w_out, w_in = sch.split(w, [None, tiling.column_tile])
    vectors = tiling.channel_block // tiling.lanes
    o_out, o_mid, lane = sch.split(o, [None, vectors, tiling.lanes])
    sch.reorder(n, h_out, o_out, h_in, w_out, o_mid, ry, rx, w_in, lane)
    task = sch.fuse(n, h_out, o_out)
    sch.reverse_compute_at(out, o_mid, preserve_unit_loops=True)
    if spec.padded:
        rows = sch.get_sblock("rows")
        sch.compute_at(rows, task, preserve_unit_loops=True)
        if spec.outputs == spec.shape[3]:
            sch.vectorize(sch.split(sch.get_loops(rows)[-1], [None, tiling.lanes])[1])
    if tiling.threads > 1:
        sch.parallel(task)
    *_, column, channel = sch.get_loops(out)
    sch.unroll(column)
    sch.vectorize(channel)
    sch.vectorize(lane)
    init = sch.decompose_reduction(acc, ry)
    *_, column, channel = sch.get_loops(init)
    sch.unroll(column)
    sch.vectorize(channel)
    sch.unroll(w_in)
    if spec.kernel[0] * spec.kernel[1] <= UNROLLED_TAPS:
        sch.unroll(ry)
        sch.unroll(rx)


def kernel(spec: FloatWindowSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    sch = Schedule(compute(spec))
    tiling = default_tiling(spec, machine)
    schedule(sch, spec, tiling)
    name = f"{spec.operation}_nhwc_f32_{tiling.column_tile}x{tiling.lanes}"
    return with_facts(sch.mod["main"], name, spec.operation)
