"""Depthwise convolution on 8-bit integers, NHWC, with a fused epilogue.

Matches ``acc[n, h, w, o] = bias[o] + sum(x[n, h', w', o // m] * weight[o, ry, rx])`` in int32
followed by `tvmquant.schedules.epilogue`; m is the channel multiplier.

Strategy

1. *Rows in groups.* The dot-product instructions sum ``group`` products per lane: two or four rows
   of the window at one column are interleaved in registers (`depthwise_intrinsics`), the last
   group filled up with zero weights. The interleaved column serves every output column that sees
   it: they are neighbours in the register tile, unrolled.
2. *Registers.* ``column_tile`` pixels of ``lanes`` channels; the weights of these channels stay in
   registers for a whole row.
3. *Padding* copies the input rows of one task, for the task's channels, into a small buffer inside
   the parallel loop: the inner loops have no branches, and read from the first-level cache.
4. *Epilogue* on the tile while it is in registers.
5. *Parallel* over images, blocks of rows and blocks of channels alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule
from tvmquant.schedules import depthwise_intrinsics
from tvmquant.schedules.epilogue import Epilogue, placeholders
from tvmquant.schedules.isa import DotProduct, dot_products
from tvmquant.schedules.loops import PARALLEL_BYTES, lanes_for

# The padded rows of one task take at most this much of the first-level cache.
ROWS_BYTES = 20 * 1024
# Instructions of a register tile, fully unrolled.
UNROLLED_PRODUCTS = 64
COPY_BYTES = 32


@dataclass(frozen=True)
class DepthwiseConv2DSpec:
    """Static parameters of a depthwise convolution, NHWC.

    Parameters
    ----------
    batch, height, width, channels : int
        Extents of the input.
    multiplier : int
        Output channels per input channel.
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    input_zero_point : int
        Value of the padding.
    epilogue : Epilogue or None
        None stores the int32 accumulator.
    residual_dtype : str
        Type of the epilogue's residual.
    """

    batch: int
    height: int
    width: int
    channels: int
    multiplier: int = 1
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    input_zero_point: int = 0
    epilogue: Epilogue | None = None
    residual_dtype: str = "uint8"

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.channels * self.multiplier

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        window = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[2] - window) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        window = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[1] + self.padding[3] - window) // self.strides[1] + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer."""
        window = self.kernel[0] * self.kernel[1]
        return self.batch * self.out_height * self.out_width * self.outputs * window


@dataclass(frozen=True)
class Tiling:
    """How the loops are cut; every number is explained by the module's strategy.

    Parameters
    ----------
    dot : DotProduct
        Instruction; its group is the number of window rows multiplied at once.
    column_tile : int
        Output pixels of one row accumulated together in registers.
    row_block : int
        Output rows of one task.
    channel_block : int
        Vectors of channels of one task.
    parallel : bool
        Whether the layer is worth more than one thread.
    """

    dot: DotProduct
    column_tile: int
    row_block: int
    channel_block: int
    parallel: bool = True


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _row_groups(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    return -(-spec.kernel[0] // tiling.dot.group)


def padded_outputs(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return the length of the per-channel vectors the kernel takes (zeros beyond the channels)."""
    return _round_up(spec.outputs, tiling.dot.lanes * tiling.channel_block)


def pack_weight(
    weight: npt.NDArray[np.int8], spec: DepthwiseConv2DSpec, tiling: Tiling
) -> npt.NDArray[Any]:
    """Pack a weight for the kernel.

    Parameters
    ----------
    weight : int8 array of shape (O, kh, kw)

    Returns
    -------
    array of shape (O' / lanes, ceil(kh / group), kw, lanes, group)
        Of the dot product's weight type; zeros where extents are padded.
    """
    lanes, group = tiling.dot.lanes, tiling.dot.group
    outputs, kernel_h, kernel_w = weight.shape
    padded, row_groups = padded_outputs(spec, tiling), _row_groups(spec, tiling)
    packed = np.zeros((padded, row_groups * group, kernel_w), tiling.dot.weight_dtype)
    packed[:outputs, :kernel_h] = weight
    blocks = packed.reshape(padded // lanes, lanes, row_groups, group, kernel_w)
    return np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3))


def compute(spec: DepthwiseConv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Define the layer on padded extents: blocks ``rows``, ``acc`` and ``out``.

    Arguments of the function: x, weight (packed), bias, the epilogue's vectors (each of
    `padded_outputs` entries), residual, residual multiplier, table, and last the output.
    """
    lanes, group = tiling.dot.lanes, tiling.dot.group
    padded, row_groups = padded_outputs(spec, tiling), _row_groups(spec, tiling)
    x = te.placeholder((spec.batch, spec.height, spec.width, spec.channels), "uint8", name="x")
    weight = te.placeholder(
        (padded // lanes, row_groups, spec.kernel[1], lanes, group),
        tiling.dot.weight_dtype,
        name="weight",
    )
    bias = te.placeholder((padded,), "int32", name="bias")
    out_shape = (spec.batch, spec.out_height, spec.out_width, spec.outputs)
    extra = placeholders(spec.epilogue, padded, out_shape, spec.residual_dtype)
    columns = _round_up(spec.out_width, tiling.column_tile)
    height = _round_up(spec.out_height, tiling.row_block)
    rows = _padded_rows(x, spec, height, columns, padded, row_groups * group)

    rg = te.reduce_axis((0, row_groups), "rg")
    rx = te.reduce_axis((0, spec.kernel[1]), "rx")
    rk = te.reduce_axis((0, group), "rk")

    def product(n: Any, h: Any, w: Any, o: Any) -> Any:
        row = h * spec.strides[0] + (rg * group + rk) * spec.dilation[0]
        value = rows[n, row, w * spec.strides[1] + rx * spec.dilation[1], o]
        factor = weight[o // lanes, rg, rx, o % lanes, rk]
        return te.sum(value.astype("int32") * factor.astype("int32"), axis=[rg, rx, rk])

    acc = te.compute((spec.batch, height, columns, padded), product, name="acc")

    def finish(n: Any, h: Any, w: Any, o: Any) -> Any:
        total = acc[n, h, w, o] + bias[o]
        if spec.epilogue is None:
            return total
        vectors = [t[o] for t in extra[:3]]
        residual = (extra[3][n, h, w, o], extra[4][o]) if spec.epilogue.residual else None
        table = extra[-1] if spec.epilogue.table else None
        return spec.epilogue.apply(total, *vectors, residual, table)

    return te.create_prim_func([x, weight, bias, *extra, te.compute(out_shape, finish, name="out")])


def _padded_rows(
    x: te.Tensor, spec: DepthwiseConv2DSpec, height: int, columns: int, padded: int, window: int
) -> te.Tensor:
    """Define the input with its padding; what only zero weights see may hold anything."""
    reach_h = (height - 1) * spec.strides[0] + (window - 1) * spec.dilation[0] + 1
    reach_w = (columns - 1) * spec.strides[1] + (spec.kernel[1] - 1) * spec.dilation[1] + 1
    top, left = spec.padding[:2]
    zero = tirx.const(spec.input_zero_point, "uint8")

    def value(n: Any, h: Any, w: Any, o: Any) -> Any:
        row, column = h - top, w - left
        inside = [row >= 0, row < spec.height, column >= 0, column < spec.width]
        if padded != spec.outputs:
            inside.append(o < spec.outputs)
        channel = o // spec.multiplier if spec.multiplier > 1 else o
        return te.if_then_else(tirx.all(*inside), x[n, row, column, channel], zero)

    return te.compute((spec.batch, reach_h, reach_w, padded), value, name="rows")


def schedule(sch: Schedule, spec: DepthwiseConv2DSpec, tiling: Tiling) -> None:
    """Schedule `compute` (steps 1-5 of the module's description)."""
    dot = tiling.dot
    rows, acc, out = (sch.get_sblock(name) for name in ("rows", "acc", "out"))

    # tasks
    n, h, w, o, rg, rx, rk = sch.get_loops(acc)
    h_out, h_in = sch.split(h, [None, tiling.row_block])
    w_out, w_in = sch.split(w, [None, tiling.column_tile])
    o_out, o_mid, lane = sch.split(o, [None, tiling.channel_block, dot.lanes])
    sch.reorder(n, h_out, o_out, o_mid, h_in, w_out, w_in, rg, rx, lane, rk)
    task = sch.fuse(n, h_out, o_out)

    # the epilogue on each tile, the padded rows once per task
    sch.reverse_compute_at(out, w_out, preserve_unit_loops=True)
    sch.compute_at(rows, task, preserve_unit_loops=True)
    if tiling.parallel:
        sch.parallel(task)
    copied = sch.get_loops(rows)[-1]
    width = tiling.channel_block * dot.lanes
    _, vector = sch.split(copied, [None, lanes_for(width, COPY_BYTES)])
    whole = padded_outputs(spec, tiling) == spec.outputs
    if whole and spec.multiplier == 1:
        sch.vectorize(vector)
    *_, column, channel = sch.get_loops(out)
    sch.unroll(column)
    if whole:  # a predicate on the channel would make LLVM store lane by lane
        sch.vectorize(channel)

    # registers
    if not dot.tensorized:
        sch.reorder(rk, lane)
        sch.vectorize(lane)
    init = sch.decompose_reduction(acc, w_in)
    *_, columns, lanes = sch.get_loops(init)
    sch.vectorize(lanes)
    sch.unroll(columns)
    if dot.tensorized:
        sch.tensorize(lane, depthwise_intrinsics.intrinsic(dot))
    for loop in (w_in, rg, rx):
        sch.unroll(loop)


def default_tiling(spec: DepthwiseConv2DSpec, target: tvm.target.Target, threads: int) -> Tiling:
    """Choose a tiling from registers, caches and exact division, without measuring."""
    dots = dot_products(target)
    usable = [d for d in dots if d.tensorized and spec.dilation[0] == 1] or [dots[-1]]
    # the instruction that computes fewest lanes in vain, the widest of equals
    dot = min(usable, key=lambda d: _round_up(spec.outputs, d.lanes) / d.lanes)
    taps = -(-spec.kernel[0] // dot.group) * spec.kernel[1]
    most = max(1, min(8, UNROLLED_PRODUCTS // taps, spec.out_width))
    column_tile = min(
        range(max(1, most - 4), most + 1), key=lambda t: _round_up(spec.out_width, t) + 0.5 * 8 / t
    )
    vectors = -(-spec.outputs // dot.lanes)
    row_bytes = spec.width + spec.padding[1] + spec.padding[3]
    window = spec.dilation[0] * (_round_up(spec.kernel[0], dot.group) - 1) + 1
    best: tuple[float, Tiling] | None = None
    for channel_block in (b for b in range(1, vectors + 1) if vectors % b == 0):
        width = channel_block * dot.lanes * row_bytes
        for row_block in range(1, spec.out_height + 1):
            copied = (row_block - 1) * spec.strides[0] + window
            tasks = spec.batch * -(-spec.out_height // row_block) * (vectors // channel_block)
            rounds = -(-tasks // threads)
            # work of the busiest thread: multiplying and copying, the latter slow beyond the cache
            spill = 1.0 if copied * width <= ROWS_BYTES else 2.0
            narrow = 1.0 + 16.0 / (channel_block * dot.lanes)
            multiply = row_block * spec.out_width * channel_block * (2.5 * taps + 6)
            copy = spill * narrow * copied * width / COPY_BYTES * 2
            cost = rounds * (multiply + copy + 200)
            if best is None or cost < best[0]:
                tiling = Tiling(dot, column_tile, row_block, channel_block)
                best = cost, tiling
    assert best is not None  # one row of one vector is always among the candidates
    return replace(best[1], parallel=threads > 1 and spec.macs >= PARALLEL_BYTES)


def kernel(spec: DepthwiseConv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the scheduled kernel of a layer."""
    sch = Schedule(compute(spec, tiling))
    schedule(sch, spec, tiling)
    name = f"depthwise_conv2d_nhwc_u8s8s32_{tiling.dot.name}_{tiling.column_tile}"
    return sch.mod["main"].with_attr("tvmquant.kernel", name)
