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

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules import isa
from tvmquant.schedules.align_stack import align_stack
from tvmquant.schedules.epilogue import Epilogue, apply_at, placeholders
from tvmquant.schedules.isa import DotProduct, Stage, dot_products, taps
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import PARALLEL_BYTES, lanes_for, round_up

# The padded rows of a task are copied at half the speed beyond this share of each cache,
ROWS = 1 / 2
# and what one row of outputs reads stays in the first-level cache within this.
WINDOW = 3 / 4
# Output columns unrolled together,
WIDEST_TILE = 8
# and dot products: 5x5 would have 420, and MobileNetV3-small take 1.02 times as long
UNROLLED = 240
TASK_CYCLES = 200
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
    vectors : int
        Vectors of channels multiplied by one unrolled step.
    row_tile : int
        Output rows that share their input rows.
    column_tile : int
        Output pixels of one row accumulated together in registers.
    row_block : int
        Tiles of output rows of one task.
    channel_block : int
        Steps of channels of one task.
    parallel : bool
        Whether the layer is worth more than one thread.
    """

    dot: DotProduct
    vectors: int
    row_tile: int
    column_tile: int
    row_block: int
    channel_block: int
    parallel: bool = True

    @property
    def lanes(self) -> int:
        """Channels of one unrolled step."""
        return self.dot.lanes * self.vectors


def _copies(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return how many output rows in turn have a copy of the weights of their own.

    Rows share interleaved groups of input rows, so each starts somewhere within a group: with
    stride 1 and groups of two, those of even and of odd rows are two copies; with stride 2, one.
    """
    cycle = tiling.dot.group // math.gcd(spec.strides[0], tiling.dot.group)
    return tiling.row_tile if tiling.row_tile % cycle else cycle


def _pairs_along(spec: DepthwiseConv2DSpec, tiling: Tiling) -> bool:
    """Whether the last row of a window, left over by pairs of rows, comes in pairs of columns."""
    pairs = tiling.dot.tensorized and tiling.dot.group == 2 and _copies(spec, tiling) == 1
    odd = spec.kernel[0] > 1 and spec.kernel[0] % 2 == 1
    return pairs and odd and spec.dilation[1] == 1 and _finishes(spec, tiling)


def _row_groups(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return how many groups of input rows an output row takes, its zero weights included."""
    if _pairs_along(spec, tiling):
        return spec.kernel[0] // 2
    shift = (_copies(spec, tiling) - 1) * spec.strides[0]
    return -(-(spec.kernel[0] + shift) // tiling.dot.group)


def window_products(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return how many dot products a vector of outputs takes."""
    along = -(-spec.kernel[1] // 2) if _pairs_along(spec, tiling) else 0
    return _row_groups(spec, tiling) * spec.kernel[1] + along


def rows_read(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return how many input rows are read by output rows that begin in the same one."""
    if _pairs_along(spec, tiling):
        return spec.kernel[0]
    return (_row_groups(spec, tiling) * tiling.dot.group - 1) * spec.dilation[0] + 1


def padded_outputs(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return the length of the per-channel vectors the kernel takes (zeros beyond the channels)."""
    return round_up(spec.outputs, tiling.lanes * tiling.channel_block)


def _finishes(spec: DepthwiseConv2DSpec, tiling: Tiling) -> bool:
    """Whether steps of channels are finished as a whole, before they are stored."""
    residual = spec.epilogue is not None and spec.epilogue.residual
    return padded_outputs(spec, tiling) == spec.outputs and not residual


def _widened(spec: DepthwiseConv2DSpec, tiling: Tiling) -> bool:
    """Whether rows are interleaved as words, which changes the order of channels in a step."""
    widens = taps.widens(tiling.dot, tiling.vectors)
    return widens and _finishes(spec, tiling)


def pack_vector(
    vector: npt.NDArray[Any], spec: DepthwiseConv2DSpec, tiling: Tiling
) -> npt.NDArray[Any]:
    """Pack a vector of `padded_outputs` entries, one per channel, in the kernel's order."""
    if not _widened(spec, tiling):
        return vector
    blocks = vector.reshape(-1, tiling.lanes)
    return np.ascontiguousarray(blocks[:, _channel_order(tiling)].reshape(-1))


def _channel_order(tiling: Tiling) -> list[int]:
    return [taps.channel(i, tiling.dot) for i in range(tiling.lanes)]


def pack_weight(
    weight: npt.NDArray[np.int8], spec: DepthwiseConv2DSpec, tiling: Tiling
) -> npt.NDArray[Any]:
    """Pack a weight for the kernel.

    Parameters
    ----------
    weight : int8 array of shape (O, kh, kw)

    Returns
    -------
    array of shape (O' / lanes, copies, dot products, lanes, group)
        Of the dot product's weight type: groups of rows, column by column, then pairs of columns
        of a row left over. In copy i, the window is moved down by i * stride rows of zeros. Zeros
        also where extents are padded. Lanes are in the order of `pack_vector`.
    """
    lanes, group = tiling.lanes, tiling.dot.group
    outputs, _, kernel_w = weight.shape
    padded, groups, copies = (f(spec, tiling) for f in (padded_outputs, _row_groups, _copies))
    down = np.zeros((padded, copies, groups * group, kernel_w), tiling.dot.weight_dtype)
    along = _pairs_along(spec, tiling)
    for copy in range(copies):
        first = copy * spec.strides[0]
        rows = weight[:, :-1] if along else weight
        down[:outputs, copy, first : first + rows.shape[1]] = rows
    down = down.reshape(padded, copies, groups, group, kernel_w).transpose(0, 1, 2, 4, 3)
    packed = [down.reshape(padded, copies, -1, group)]
    if along:
        last = np.pad(weight[:, -1], ((0, padded - outputs), (0, kernel_w % 2)))
        packed.append(last.reshape(padded, copies, -1, group).astype(down.dtype))
    blocks = np.concatenate(packed, axis=2).reshape(padded // lanes, lanes, copies, -1, group)
    if _widened(spec, tiling):
        blocks = blocks[:, _channel_order(tiling)]
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1, 4))


def compute(spec: DepthwiseConv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Define the layer on padded extents: ``rows``, ``acc``, ``along``, ``finished`` and ``out``.

    ``acc`` adds up groups of rows, ``along`` pairs of columns of the row left over; ``finished``
    are outputs in the order of `pack_vector`.

    Arguments of the function: x, weight (packed), bias, the epilogue's vectors (each packed by
    `pack_vector`), residual, residual multiplier, table, and last the output.
    """
    lanes, group = tiling.lanes, tiling.dot.group
    padded, groups, copies = (f(spec, tiling) for f in (padded_outputs, _row_groups, _copies))
    x = te.placeholder((spec.batch, spec.height, spec.width, spec.channels), "uint8", name="x")
    weight = te.placeholder(
        (padded // lanes, copies, window_products(spec, tiling), lanes, group),
        tiling.dot.weight_dtype,
        name="weight",
    )
    bias = te.placeholder((padded,), "int32", name="bias")
    out_shape = (spec.batch, spec.out_height, spec.out_width, spec.outputs)
    extra = placeholders(spec.epilogue, padded, out_shape, spec.residual_dtype)
    columns = round_up(spec.out_width, tiling.column_tile)
    height = round_up(spec.out_height, tiling.row_block * tiling.row_tile)
    widened, along = _widened(spec, tiling), _pairs_along(spec, tiling)
    pairs = -(-spec.kernel[1] // 2)
    reach_h = (height - copies) * spec.strides[0] + rows_read(spec, tiling)
    across = 2 * pairs if along else spec.kernel[1]
    reach_w = (columns - 1) * spec.strides[1] + (across - 1) * spec.dilation[1] + 1
    rows = _padded_rows(x, spec, reach_h, reach_w, padded)

    rk = te.reduce_axis((0, group), "rk")

    def product(n: Any, row: Any, column: Any, h: Any, o: Any, step: Any) -> Any:
        channel = o
        if widened:
            channel = o // lanes * lanes + taps.channel(o % lanes, tiling.dot)
        value = rows[n, row, column, channel]
        factor = weight[o // lanes, h % copies, step, o % lanes, rk]
        return value.astype("int32") * factor.astype("int32")

    def first(h: Any) -> Any:
        return (h // copies) * (copies * spec.strides[0])

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

    if not _finishes(spec, tiling):
        out = te.compute(out_shape, finish, name="out")
        return te.create_prim_func([x, weight, bias, *extra, out])
    finished = te.compute(shape, finish, name="finished")

    def ordered(n: Any, h: Any, w: Any, o: Any) -> Any:
        if not widened:
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
    finishes = _finishes(spec, tiling)
    sums = [acc, *([sch.get_sblock("along")] if _pairs_along(spec, tiling) else [])]
    finished = [sch.get_sblock("finished")] if finishes else []

    # tasks: of what reads all sums and has whole extents, or of the only sum
    n, h, w, o, *_ = sch.get_loops(finished[0] if finishes else acc)
    h_out, h_in, h_tile = sch.split(h, [None, tiling.row_block, tiling.row_tile])
    w_out, w_in = sch.split(w, [None, tiling.column_tile])
    o_out, o_mid, lane = sch.split(o, [None, tiling.channel_block, tiling.lanes])
    sch.reorder(n, h_out, o_out, h_in, o_mid, w_out, w_in, h_tile, lane)
    task = sch.fuse(n, h_out, o_out)

    # the sums and the epilogue on each tile, the padded rows once per task
    if finishes:
        for block in sums:
            sch.compute_at(block, w_in, preserve_unit_loops=True)
    sch.reverse_compute_at(out, w_in, preserve_unit_loops=True)
    sch.compute_at(rows, task, preserve_unit_loops=True)
    if tiling.parallel:
        sch.parallel(task)
    copied = sch.get_loops(rows)[-1]
    width = tiling.channel_block * tiling.lanes
    _, vector = sch.split(copied, [None, lanes_for(width, COPY_BYTES)])
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
        lane, h_tile = loops[-reduced - 1], loops[-reduced - (3 if finishes else 2)]
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
            widened, along = _widened(spec, tiling), block is not acc
            name = isa.taps_intrinsic(dot, tiling.vectors, widened=widened, along=along)
            sch.tensorize(lane, name)
        for loop in (*steps, h_tile):
            sch.unroll(loop)


def default_tiling(spec: DepthwiseConv2DSpec, machine: Machine) -> Tiling:
    """Choose a tiling from registers, caches and exact division, without measuring."""
    dots = dot_products(machine.target, Stage.TAPS, exact=True)
    usable = [d for d in dots if d.tensorized and _pays(spec, d)] or [dots[-1]]
    # the instruction that computes fewest lanes in vain, the widest of equals
    dot = min(usable, key=lambda d: round_up(spec.outputs, d.lanes))
    # a vector that reaches beyond the channels is stored lane by lane, 2.6 times as slow
    double = round_up(spec.outputs, 2 * dot.lanes)
    wide = dot.tensorized and (
        double == spec.outputs or (spec.outputs % dot.lanes > 0 and double * 8 <= 9 * spec.outputs)
    )
    first = Tiling(dot, 2 if wide else 1, 1, 1, 1, 1)
    if _sharing_pays(spec, first):
        first = replace(first, row_tile=2)
    products = window_products(spec, first) * first.row_tile * first.vectors
    widest = max(1, min(WIDEST_TILE, spec.out_width, UNROLLED // products))
    # columns computed in vain, and those interleaved again at the start of each tile
    column_tile = min(
        range(1, widest + 1), key=lambda t: round_up(spec.out_width, t) * (1 + 0.8 / t)
    )
    first = replace(first, column_tile=column_tile)
    steps = -(-spec.outputs // first.lanes)
    candidates = [
        replace(first, row_block=row_block, channel_block=channel_block)
        for channel_block in range(1, steps + 1)
        if steps % channel_block == 0
        for row_block in range(1, -(-spec.out_height // first.row_tile) + 1)
    ]
    best = min(candidates, key=lambda tiling: _cycles(spec, tiling, machine))
    return replace(best, parallel=machine.threads > 1 and spec.macs >= 2 * PARALLEL_BYTES)


def shares_rows(spec: DepthwiseConv2DSpec, dot: DotProduct) -> bool:
    """Whether output rows can share interleaved input rows without more zero weights."""
    return spec.strides[0] == 1 or spec.strides[0] % dot.group == 0


def _sharing_pays(spec: DepthwiseConv2DSpec, alone: Tiling) -> bool:
    """Whether two output rows that share input rows beat each one alone."""
    if not (alone.dot.tensorized and shares_rows(spec, alone.dot) and spec.out_height > 1):
        return False
    if not _pairs_along(spec, alone):
        return True
    # with stride 2 they share loads only; with stride 1, 3x3 take 0.96 of the time, 5x5 1.03
    return spec.strides[0] == 1 and round_up(spec.out_height, 2) <= 1.05 * spec.out_height


def _pays(spec: DepthwiseConv2DSpec, dot: DotProduct) -> bool:
    """Whether interleaving rows beats multiplying one tap at a time."""
    if spec.dilation[0] > 1:
        return False  # the rows of a group would have to be neighbours
    if dot.group == 4 or spec.strides[0] == 1 or spec.kernel[0] > 3:
        return True
    # a pair of rows and one left over: 1.3 to 1.5x widened, 0.92 to 1.08x otherwise
    return _widened(spec, Tiling(dot, 2, 1, 1, 1, 1))


def _cycles(spec: DepthwiseConv2DSpec, tiling: Tiling, machine: Machine) -> float:
    """Estimate the cycles of the busiest thread."""
    height = tiling.row_block * tiling.row_tile
    window = rows_read(spec, tiling)
    steps = padded_outputs(spec, tiling) // tiling.lanes
    tasks = spec.batch * -(-spec.out_height // height) * (steps // tiling.channel_block)
    instructions = 2 * window_products(spec, tiling) + 12
    multiply = height * spec.out_width * tiling.channel_block * tiling.vectors * instructions / 3
    columns = spec.width + spec.padding[1] + spec.padding[3]
    copied = ((height - _copies(spec, tiling)) * spec.strides[0] + window) * columns
    width = tiling.channel_block * tiling.lanes
    copy = copied * (1 + width / COPY_BYTES)
    caches = machine.caches
    for size in (ROWS * caches.first_level, ROWS * caches.second_level):
        copy *= 2 if copied * width > size else 1
    # one step of channels touches a line of each pixel
    if window * columns * min(width, caches.line) > WINDOW * caches.first_level:
        multiply *= 1.25
    return -(-tasks // machine.threads) * (multiply + copy + TASK_CYCLES)


def kernel(spec: DepthwiseConv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the scheduled kernel of a layer."""
    sch = Schedule(compute(spec, tiling))
    schedule(sch, spec, tiling)
    name = f"depthwise_conv2d_nhwc_u8s8s32_{tiling.dot.name}_{tiling.column_tile}"
    scheduled = with_facts(sch.mod["main"], name, "depthwise_conv2d")
    # x86's instructions find most operands on the stack: 0.77 to 1.0 of the time
    return align_stack(scheduled) if tiling.dot.tensorized else scheduled
