"""Depthwise convolution on 8-bit integers, NHWC, with a fused epilogue.

Matches ``acc[n, h, w, o] = bias[o] + sum(x[n, h', w', o // m] * weight[o, ry, rx])`` in int32
followed by `tvmquant.schedules.epilogue`; m is the channel multiplier.

Strategy

1. *Rows in groups.* The dot-product instructions sum ``group`` products per lane: two or four rows
   of the window at one column are interleaved in registers (`isa.taps`), the last
   group filled up with zero weights. The interleaved column serves every output column that sees
   it: they are neighbours in the register tile, unrolled. Where pairs of rows leave one over, it
   is interleaved with itself instead, in pairs of columns: 5 dot products in place of 6 for 3x3,
   13 of 15 for 5x5.
2. *Registers.* Columns are unrolled, each finished before the next, so that few accumulators and
   the interleaved columns of one window are alive. ``row_tile`` output rows share their interleaved
   input rows: with stride 1 and groups of two, even and odd rows each have a zero-filled copy of
   the weights, and leave no row over. 3x3 take 0.96, 5x5 1.02 to 1.04 of the time of one row alone,
   unless the last row is computed in vain. What does not fit lies on the stack, aligned
   (`align_stack`).
3. *Padding* copies the input rows of one task, for the task's channels, into a small buffer inside
   the parallel loop: the inner loops have no branches, and the rows that one row of outputs reads
   stay in the first-level cache.
4. *Epilogue* on every pixel while it is in registers.
5. *Parallel* over images, blocks of rows and blocks of channels alike.

Measured on AVX2 (Zen 3 at 3.2 GHz, vpmaddwd), with a 32-bit epilogue, channels in whole steps of
16, one thread, in GMAC/s: 3x3 26-32, 5x5 35-41 with stride 1, 3x3 19-24, 5x5 29-34 with stride 2;
one 32-bit multiplication per tap, as on targets without dot products, 15-22. Bound by the ports of
the processor: by what LLVM's model of Zen 3 gives (llvm-mca, reciprocal throughput of the inner
loop), kernels reach 0.70 to 1.03 with the copies of their rows counted in, and 112x112x96 with
stride 2, whose input lies in the last cache, 0.64. Of loads alone (two of 32 bytes a cycle) it is
0.6 to 0.85, and of vector instructions alone (four a cycle; nearly half of them widen and
interleave, two a cycle) 0.46 to 0.56 for 3x3 with stride 2.

Rejected: four rows of outputs that share input (registers spill, 0.9x); interleaving into a buffer
(more memory traffic than arithmetic); pairs of columns in output rows that share input as well, odd
rows with their first row left over (with stride 1 3x3 1.03 to 1.12, 5x5 0.93 to 1.08 of the time);
finishing a whole tile of columns at once (accumulators spill, 0.9x); tiles in the interior that
read the input in place, while only the border is copied (3x3 0.91 to 1.06, 5x5 1.04 to 1.27 of the
time: two copies of the unrolled code).
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.schedules import isa
from tvmquant.schedules.align_stack import align_stack
from tvmquant.schedules.depthwise_spec import (
    CHANNELS,
    COPIED,
    DepthwiseConv2DSpec,
    Tiling,
    copies,
    finishes,
    pack_vector,
    pack_weight,
    padded_outputs,
    pairs_along,
    row_groups,
    rows_read,
    widened,
    window_products,
)
from tvmquant.schedules.depthwise_tiling import default_tiling
from tvmquant.schedules.epilogue import apply_at, placeholders
from tvmquant.schedules.isa import taps
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import lanes_for, round_up

__all__ = [
    "CHANNELS",
    "DepthwiseConv2DSpec",
    "Tiling",
    "compute",
    "default_tiling",
    "kernel",
    "pack_vector",
    "pack_weight",
    "padded_outputs",
    "schedule",
]


def compute(spec: DepthwiseConv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Define the layer on padded extents: ``rows``, ``acc``, ``along``, ``finished`` and ``out``.

    ``acc`` adds up groups of rows, ``along`` pairs of columns of the row left over; ``finished``
    are outputs in the order of `pack_vector`.

    Arguments of the function: x, weight (packed), bias, the epilogue's vectors (each packed by
    `pack_vector`), residual, residual multiplier, table, and last the output.
    """
    lanes, group = tiling.lanes, tiling.dot.group
    padded, groups, count = (f(spec, tiling) for f in (padded_outputs, row_groups, copies))
    x = te.placeholder((spec.batch, spec.height, spec.width, spec.channels), "uint8", name="x")
    weight = te.placeholder(
        (padded // lanes, count, window_products(spec, tiling), lanes, group),
        tiling.dot.weight_dtype,
        name="weight",
    )
    bias = te.placeholder((padded,), "int32", name="bias")
    out_shape = (spec.batch, spec.out_height, spec.out_width, spec.outputs)
    extra = placeholders(spec.epilogue, padded, out_shape, spec.residual_dtype)
    columns = round_up(spec.out_width, tiling.column_tile)
    height = round_up(spec.out_height, tiling.row_block * tiling.row_tile)
    reordered, along = widened(spec, tiling), pairs_along(spec, tiling)
    pairs = -(-spec.kernel[1] // 2)
    reach_h = (height - count) * spec.strides[0] + rows_read(spec, tiling)
    across = 2 * pairs if along else spec.kernel[1]
    reach_w = (columns - 1) * spec.strides[1] + (across - 1) * spec.dilation[1] + 1
    rows = _padded_rows(x, spec, reach_h, reach_w, padded)

    rk = te.reduce_axis((0, group), "rk")

    def product(n: Any, row: Any, column: Any, h: Any, o: Any, step: Any) -> Any:
        channel = o
        if reordered:
            channel = o // lanes * lanes + taps.channel(o % lanes, tiling.dot)
        value = rows[n, row, column, channel]
        factor = weight[o // lanes, h % count, step, o % lanes, rk]
        return value.astype("int32") * factor.astype("int32")

    def first(h: Any) -> Any:
        return (h // count) * (count * spec.strides[0])

    rg = te.reduce_axis((0, groups), "rg")
    rx = te.reduce_axis((0, spec.kernel[1]), "rx")

    def down(n: Any, h: Any, w: Any, o: Any) -> Any:
        row = first(h) + (rg * group + rk) * spec.dilation[0]
        column = w * spec.strides[1] + rx * spec.dilation[1]
        return te.sum(product(n, row, column, h, o, rg * spec.kernel[1] + rx), axis=[rg, rx, rk])

    shape = (spec.batch, height, columns, padded)
    sums = [te.compute(shape, down, name="acc")]
    if along:
        rp = te.reduce_axis((0, pairs), "rp")

        def beside(n: Any, h: Any, w: Any, o: Any) -> Any:
            column = w * spec.strides[1] + (rp * group + rk) * spec.dilation[1]
            row, step = first(h) + spec.kernel[0] - 1, groups * spec.kernel[1] + rp
            return te.sum(product(n, row, column, h, o, step), axis=[rp, rk])

        sums.append(te.compute(shape, beside, name="along"))

    def finish(n: Any, h: Any, w: Any, o: Any) -> Any:
        total = sum(part[n, h, w, o] for part in sums) + bias[o]
        return apply_at(spec.epilogue, total, extra, (n, h, w, o))

    if not finishes(spec, tiling):
        out = te.compute(out_shape, finish, name="out")
        return te.create_prim_func([x, weight, bias, *extra, out])
    finished = te.compute(shape, finish, name="finished")

    def ordered(n: Any, h: Any, w: Any, o: Any) -> Any:
        if not reordered:
            return finished[n, h, w, o]
        lane = taps.lane(o % lanes, tiling.dot)
        return finished[n, h, w, o // lanes * lanes + lane]

    out = te.compute(out_shape, ordered, name="out")
    return te.create_prim_func([x, weight, bias, *extra, out])


def _padded_rows(
    x: te.Tensor, spec: DepthwiseConv2DSpec, reach_h: int, reach_w: int, padded: int
) -> te.Tensor:
    """Define the input with its padding; what only zero weights see may hold anything."""
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
    whole_steps = finishes(spec, tiling)
    sums = [acc, *([sch.get_sblock("along")] if pairs_along(spec, tiling) else [])]
    finished = [sch.get_sblock("finished")] if whole_steps else []

    # tasks: of what reads all sums and has whole extents, or of the only sum
    n, h, w, o, *_ = sch.get_loops(finished[0] if whole_steps else acc)
    h_out, h_in, h_tile = sch.split(h, [None, tiling.row_block, tiling.row_tile])
    w_out, w_in = sch.split(w, [None, tiling.column_tile])
    o_out, o_mid, lane = sch.split(o, [None, tiling.channel_block, tiling.lanes])
    sch.reorder(n, h_out, o_out, h_in, o_mid, w_out, w_in, h_tile, lane)
    task = sch.fuse(n, h_out, o_out)

    # the sums and the epilogue on each tile, the padded rows once per task
    if whole_steps:
        for block in sums:
            sch.compute_at(block, w_in, preserve_unit_loops=True)
    sch.reverse_compute_at(out, w_in, preserve_unit_loops=True)
    sch.compute_at(rows, task, preserve_unit_loops=True)
    if tiling.parallel:
        sch.parallel(task)
    copied = sch.get_loops(rows)[-1]
    width = tiling.channel_block * tiling.lanes
    _, vector = sch.split(copied, [None, lanes_for(width, COPIED)])
    whole = padded_outputs(spec, tiling) == spec.outputs
    if whole and spec.multiplier == 1:
        sch.vectorize(vector)
    for block in (*finished, out):
        *_, row, channel = sch.get_loops(block)
        sch.unroll(row)
        if whole:  # a predicate on the channel would make LLVM store lane by lane
            sch.vectorize(channel)
    sch.unroll(w_in)

    # registers
    for block in sums:
        loops, reduced = sch.get_loops(block), 3 if block is acc else 2
        lane, h_tile = loops[-reduced - 1], loops[-reduced - (3 if whole_steps else 2)]
        *steps, rk = loops[-reduced:]
        if dot.tensorized:
            sch.reorder(*steps, h_tile, lane, rk)
        else:
            sch.reorder(*steps, h_tile, rk, lane)
            sch.vectorize(lane)
        init = sch.decompose_reduction(block, steps[0])
        *_, row, lanes = sch.get_loops(init)
        sch.vectorize(lanes)
        sch.unroll(row)
        if dot.tensorized:
            name = isa.taps_intrinsic(
                dot,
                tiling.vectors,
                widened=widened(spec, tiling),
                along=block is not acc,
            )
            sch.tensorize(lane, name)
        for loop in (*steps, h_tile):
            sch.unroll(loop)


def kernel(spec: DepthwiseConv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the scheduled kernel of a layer."""
    sch = Schedule(compute(spec, tiling))
    schedule(sch, spec, tiling)
    name = f"depthwise_conv2d_nhwc_u8s8s32_{tiling.dot.name}_{tiling.column_tile}"
    scheduled = with_facts(sch.mod["main"], name, "depthwise_conv2d")
    # x86's instructions find most operands on the stack: 0.77 to 1.0 of the time
    return align_stack(scheduled) if tiling.dot.tensorized else scheduled
