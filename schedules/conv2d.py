"""Convolution and dense layers, NHWC, with a fused epilogue: 8-bit and 4-bit integers, or float32.

Matches ``acc[n, h, w, o] = bias[o] + sum(x[n, h', w', c] * weight[o, ry, rx, c])`` in int32
followed by `tvmquant.schedules.epilogue`, for any stride, padding, dilation and groups. A dense
layer is the 1x1 case with one pixel per row of the batch. The same loops compute a float build's
layers, with float32 operands and accumulators (`isa.fma`) and `FloatEpilogue`.

Strategy

1. *Operands side by side.* One instruction reads ``group`` neighbouring input channels, broadcast,
   against ``lanes`` output channels (`isa.DotProduct`), so weights are packed
   ``[O / lanes][kh][taps][K / group][lanes][group]``. Without dilation a row of the window is one
   contiguous run of ``kw * C`` bytes: one reduction loop covers both, and 3-channel inputs waste
   only the bytes that round ``kw * C`` up to ``group``. Where even those count (a stem of many
   outputs), the rows of each window are copied together into one run (`Conv2DSpec.joined`): 7x7x3
   takes 0.93, 3x3x3 0.90 of the time.
2. *Registers.* A tile of ``column_tile`` pixels by ``channel_tile`` vectors of output channels
   accumulates over the whole window; more accumulators than registers would spill (3x slower).
   Where no good tile divides a small image's width, the tile's pixels follow each other through
   the rows (`Tiling.flat`), each with an address of its own: 0.92 to 0.98 of the time on 17x17 and
   7x7, 1.01 where a tile divides the width.
3. *Padding* (and widening to 16 bits for ``vpmaddwd``) copies the input rows of one task into a
   small buffer inside the parallel loop, so that the inner loops have no branches. Extents that the
   tile does not divide are computed past the edge on such padded rows and not stored. A 1x1
   convolution whose extents divide needs no copy and reads its input in place. Products with zeros
   of the padding, and for pixels past the edge, are left out where that pays (`skip_padding`).
4. *Epilogue* on the tile while it is in registers.
5. *Parallel* over row blocks, or, where the weights outweigh the activations (late layers), over
   blocks of output channels, so that each weight is read by one thread once.
6. *Chains.* Where `conv2d_packing.provable_chain` allows, ``vpmaddubsw`` adds up ``chain`` steps in
   16 bits before one ``vpmaddwd`` widens them: two instructions a step in place of three, and half
   the multiplications. The tile's 16-bit sums are in registers then; the accumulators of all but
   the smallest tiles are in memory.
7. *Four-bit weights* are two in a byte (`conv2d_packing`) and unpacked once for all the pixels that
   a task computes of a block of output channels, into a buffer of the size that 8-bit weights have.
   Where a task has no more than a tile or two (a dense layer of one row) they are unpacked in
   registers. The integer factors of groups multiply the 16-bit sums while they are widened, in
   place of the ones (no instruction more), or else the operands while they are unpacked.

Measured on Zen 3 with the features of haswell, one thread, against our 8-bit kernels of the same
layers of ResNet-50 (98 GMAC/s; registers alone allow 99): W4A4 1.47-1.55x, W4A8 1.26-1.47x, in
groups of 32 1.22-1.34x (registers alone allow 1.68x for chains); 1.35x, 1.21x and 1.03x where 64
channels make 256 and the epilogue counts; a dense layer of one row 1.02x, 0.98x and 0.94x from the
third-level cache, at half the bytes. SqueezeNet as a whole: 1.35x, 1.27x and 1.19x.

Rejected: keeping window rows unpadded with a predicate (tensorization refuses predicates).
On AVX2, ``vpmaddubsw`` (96 GMAC/s on one 3x3 layer) is used where it is proven that it cannot
saturate, else ``vpmaddwd`` on 16-bit words (77 GMAC/s, twice the weight bytes). Unpacking in
registers in every tile (0.68 to 0.85 of the speed on 28x28 128->128 3x3), or once per block also
for a single pixel (0.65 of the speed in registers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.errors import TargetError
from tvmquant.machine import Machine
from tvmquant.schedules import isa
from tvmquant.schedules.conv2d_packing import (
    BIAS,
    check_narrow,
    container_of,
    group_scale,
    pack_scale,
    pack_weight,
    provable_chain,
    scale_shape,
    weight_shape,
)
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.conv2d_tiling import default_tiling, tilings
from tvmquant.schedules.epilogue import Epilogue, FloatEpilogue, apply_at, placeholders
from tvmquant.schedules.isa import DotProduct, Stage, dot_products, fma
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import round_up
from tvmquant.schedules.patch_intrinsics import join_rows
from tvmquant.schedules.skip_padding import asks, skip_padding

__all__ = [
    "Conv2DSpec",
    "Tiling",
    "check_narrow",
    "compute",
    "container_of",
    "default_tiling",
    "group_scale",
    "input_shape",
    "kernel",
    "output_shape",
    "pack_scale",
    "pack_weight",
    "padded_outputs",
    "provable_chain",
    "schedule",
    "target_tiling",
    "tilings",
]

# Elements copied together into the padded rows.
COPIED = 32


def input_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, ...]:
    """Return the shape in which the kernel takes its input: NHWC, or (N, H, W * C) if it copies."""
    if Extents.of(spec, tiling).direct:
        return (spec.batch, spec.height, spec.width, spec.channels)
    return (spec.batch, spec.height, spec.width * spec.channels)


def output_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, int, int, int]:
    """Return the shape in which the kernel gives its output and takes a residual: NHWC, or flat."""
    return (spec.batch, *spec.out_extents(flat=tiling.flat), spec.outputs)


def padded_outputs(spec: Conv2DSpec, tiling: Tiling) -> int:
    """Return the length of the per-channel vectors the kernel takes (zeros beyond the channels)."""
    return Extents.of(spec, tiling).outputs


def compute(spec: Conv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Define the layer on padded extents.

    Blocks: ``rows`` (unless direct), ``patches`` (of joined rows), ``unpacked`` (4-bit weights,
    unless in registers), ``part`` (chains), ``acc`` and ``out``.

    Arguments of the function: x, weight (packed), with ``w_group`` the groups' factors (packed),
    bias, the epilogue's vectors (each of `padded_outputs` entries), residual, residual multiplier,
    table, and last the output.
    """
    e, dot = Extents.of(spec, tiling), tiling.dot
    x = te.placeholder(input_shape(spec, tiling), spec.dtype, name="x")
    stored = "uint8" if spec.w_bits == 4 else dot.weight_dtype
    weight = te.placeholder(weight_shape(spec, tiling), stored, name="weight")
    scale = None
    if spec.w_group:
        scale = te.placeholder(scale_shape(spec, tiling), "uint8", name="scale")
    bias = te.placeholder((e.outputs,), dot.accumulator_dtype, name="bias")
    out_shape = output_shape(spec, tiling)
    extra = placeholders(spec.epilogue, e.outputs, out_shape, spec.residual_dtype)
    operands = _Operands(
        _input_reader(x, spec, tiling), _weight_reader(weight, scale, spec, tiling)
    )
    acc = _chained(operands, scale, spec, tiling) if e.chained else _summed(operands, spec, tiling)

    def finish(n: Any, h: Any, w: Any, o: Any) -> Any:
        total = acc[n, h, w, o] + bias[o]
        return apply_at(spec.epilogue, total, extra, (n, h, w, o))

    out = te.compute(out_shape, finish, name="out")
    return te.create_prim_func([x, weight, *([] if scale is None else [scale]), bias, *extra, out])


class _Operands(NamedTuple):
    """What the dot products multiply.

    Attributes
    ----------
    input : function of (n, h, w, o, ry, rt, k)
        Element k of the run that output (h, w, o) reads with its window's row ry and tap rt.
    weight : function of (o, ry, rt, step, half, j)
        Element j of a step; with nibbles in registers of the byte ``step``, by half.
    """

    input: Callable[..., Any]
    weight: Callable[..., Any]


def _input_reader(x: te.Tensor, spec: Conv2DSpec, tiling: Tiling) -> Callable[..., Any]:
    e = Extents.of(spec, tiling)
    rows = None if e.direct else _padded_rows(x, spec, e, tiling)
    if rows is not None and spec.joined:
        patches = _patches(rows, spec, tiling)
        return lambda n, h, w, _o, _ry, _rt, k: patches[n, h, w, k]
    group_outputs, group_pixels = spec.outputs // spec.groups, e.pixel // spec.groups

    def value(n: Any, h: Any, w: Any, o: Any, ry: Any, rt: Any, k: Any) -> Any:
        if tiling.flat:
            h, w = w // spec.out_width, w % spec.out_width
        row, column = h * spec.strides[0], w * spec.strides[1]
        first = (o // group_outputs) * group_pixels if spec.groups > 1 else 0
        if rows is None:
            return x[n, row, column, first + k]
        column = (column + rt * spec.dilation[1]) * e.pixel
        return rows[n, row + ry * spec.dilation[0], column + first + k]

    return value


def _weight_reader(
    weight: te.Tensor, scale: te.Tensor | None, spec: Conv2DSpec, tiling: Tiling
) -> Callable[..., Any]:
    e, dot = Extents.of(spec, tiling), tiling.dot

    def nibble(byte: Any, half: Any) -> Any:
        octet = byte >> (half * 4).astype("uint8") & tirx.const(15, "uint8")
        return (octet.astype("int8") - tirx.const(BIAS, "int8")).astype(dot.weight_dtype)

    def stored(o: Any, ry: Any, rt: Any, step: Any, _half: Any, j: Any) -> Any:
        return weight[o // dot.lanes, ry, rt, step, o % dot.lanes, j]

    def in_registers(o: Any, ry: Any, rt: Any, step: Any, half: Any, j: Any) -> Any:
        return nibble(stored(o, ry, rt, step, half, j), half)

    if spec.w_bits == 8:
        return stored
    if e.in_registers:
        return in_registers

    def unpack(ob: Any, ry: Any, rt: Any, byte: Any, half: Any, lane: Any, j: Any) -> Any:
        value = nibble(weight[ob, ry, rt, byte, lane, j], half)
        if scale is None or e.chained:
            return value
        # a group holds an even number of steps
        group = byte * (2 * dot.group) // spec.w_group
        return value * scale[ob, ry, group, lane].astype(dot.weight_dtype)

    blocks, *window, pairs, lanes, group = weight_shape(spec, tiling)
    unpacked = te.compute((blocks, *window, pairs, 2, lanes, group), unpack, name="unpacked")

    def from_block(o: Any, ry: Any, rt: Any, step: Any, _half: Any, j: Any) -> Any:
        return unpacked[o // lanes, ry, rt, step // 2, step % 2, o % lanes, j]

    return from_block


def _summed(operands: _Operands, spec: Conv2DSpec, tiling: Tiling) -> te.Tensor:
    """Define the accumulators as one sum over the window."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    ry = te.reduce_axis((0, spec.run_rows), "ry")
    rt = te.reduce_axis((0, e.taps), "rt")
    if e.in_registers:
        step = te.reduce_axis((0, e.steps // 2), "step")
        half, j = te.reduce_axis((0, 2), "half"), te.reduce_axis((0, dot.group), "j")
        axes, at = [step, half, j], (step, half, j)
        k = step * (2 * dot.group) + half * dot.group + j
    else:
        rk = te.reduce_axis((0, e.run), "rk")
        axes, at, k = [rk], (rk // dot.group, 0, rk % dot.group), rk

    def product(n: Any, h: Any, w: Any, o: Any) -> Any:
        value, factor = (
            operand.astype(dot.accumulator_dtype)
            for operand in (
                operands.input(n, h, w, o, ry, rt, k),
                operands.weight(o, ry, rt, *at),
            )
        )
        return te.sum(value * factor, axis=[ry, rt, *axes])

    return te.compute((spec.batch, e.rows, e.columns, e.outputs), product, name="acc")


def _chained(
    operands: _Operands, scale: te.Tensor | None, spec: Conv2DSpec, tiling: Tiling
) -> te.Tensor:
    """Define the accumulators as sums of chains in 16 bits, each of ``tiling.chain`` steps."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    chains, halves = e.steps // tiling.chain, 2 if e.in_registers else 1
    length = tiling.chain // halves
    step, half = te.reduce_axis((0, length), "step"), te.reduce_axis((0, halves), "half")
    pair = te.reduce_axis((0, 2), "pair")

    def chained(n: Any, h: Any, ry: Any, rt: Any, c: Any, w: Any, o: Any, lane: Any) -> Any:
        at, j = c * length + step, lane * 2 + pair
        value, factor = (
            operand.astype("int16")
            for operand in (
                operands.input(n, h, w, o, ry, rt, (at * halves + half) * dot.group + j),
                operands.weight(o, ry, rt, at, half, j),
            )
        )
        return te.sum(value * factor, axis=[step, half, pair])

    shape = (spec.batch, e.rows, spec.run_rows, e.taps, chains, e.columns, e.outputs, 2)
    part = te.compute(shape, chained, name="part")
    ry = te.reduce_axis((0, spec.run_rows), "ry")
    rt = te.reduce_axis((0, e.taps), "rt")
    chain, lane = te.reduce_axis((0, chains), "chain"), te.reduce_axis((0, 2), "lane")

    def total(n: Any, h: Any, w: Any, o: Any) -> Any:
        wide = part[n, h, ry, rt, chain, w, o, lane].astype("int32")
        if scale is not None:
            group = chain * (tiling.chain * dot.group) // spec.w_group
            wide = wide * scale[o // dot.lanes, ry, group, o % dot.lanes].astype("int32")
        return te.sum(wide, axis=[ry, rt, chain, lane])

    return te.compute((spec.batch, e.rows, e.columns, e.outputs), total, name="acc")


def _padded_rows(x: te.Tensor, spec: Conv2DSpec, e: Extents, tiling: Tiling) -> te.Tensor:
    """Define the padded, widened input rows, flat over (column, channel)."""
    last_row, last_column, dot = e.rows - 1, e.columns - 1, tiling.dot
    if tiling.flat:
        last_row, last_column = last_column // spec.out_width, spec.out_width - 1
    height = last_row * spec.strides[0] + (spec.kernel[0] - 1) * spec.dilation[0] + 1
    reach = last_column * spec.strides[1] + (e.taps - 1) * spec.dilation[1]
    if spec.joined:
        height += -(-e.run // spec.row) - spec.kernel[0]
        columns = reach + spec.kernel[1]
    else:
        columns = reach + -(-e.run * spec.groups // e.pixel)
    top, left = spec.padding[:2]
    per_group = e.pixel // spec.groups
    group_channels = spec.channels // spec.groups
    zero = tirx.const(spec.input_zero_point, dot.input_dtype)

    def value(n: Any, h: Any, j: Any) -> Any:
        row = h - top
        if per_group == group_channels:
            source = j - left * e.pixel
            inside = [source >= 0, source < spec.width * e.pixel]
        else:
            column, channel = j // e.pixel - left, j % e.pixel
            inside = [column >= 0, column < spec.width, channel % per_group < group_channels]
            channel = channel // per_group * group_channels + channel % per_group
            source = column * spec.channels + channel
        run = te.if_then_else(tirx.all(*inside), x[n, row, source].astype(dot.input_dtype), zero)
        return te.if_then_else(tirx.all(row >= 0, row < spec.height), run, zero)

    width = round_up(columns * e.pixel, COPIED)
    return te.compute((spec.batch, height, width), value, name="rows")


def _patches(rows: te.Tensor, spec: Conv2DSpec, tiling: Tiling) -> te.Tensor:
    """Define the window of every output pixel as one run, its rows one after the other."""
    e = Extents.of(spec, tiling)

    def value(n: Any, h: Any, w: Any, k: Any) -> Any:
        if tiling.flat:
            h, w = w // spec.out_width, w % spec.out_width
        row, column = h * spec.strides[0], w * (spec.strides[1] * spec.channels)
        return rows[n, row + k // spec.row, column + k % spec.row]

    return te.compute((spec.batch, e.rows, e.columns, e.run), value, name="patches")


def schedule(sch: Schedule, spec: Conv2DSpec, tiling: Tiling) -> None:
    """Schedule `compute` (steps 1-7 of the module's description)."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    acc, out = sch.get_sblock("acc"), sch.get_sblock("out")

    # 1. cut the loops; ``steps`` are around a tile, ``products`` within its instructions
    n, h, w, o, ry, rt, *reduced = sch.get_loops(acc)
    halves = []
    if e.chained:
        steps, *products = reduced
    elif e.in_registers:
        steps, *halves, k_in = reduced
        products = [k_in]
    else:
        steps, *products = sch.split(reduced[0], [None, dot.group])
    taps = []
    if e.taps_apart and asks(spec, tiling):
        *taps, steps = sch.split(steps, [spec.kernel[1], None])
    h_out, h_in = sch.split(h, [None, tiling.row_block])
    w_block, w_out, w_in = sch.split(
        w, [None, tiling.column_block // tiling.column_tile, tiling.column_tile]
    )
    o_out, o_mid, lane = sch.split(o, [None, tiling.channel_tile, dot.lanes])
    inner = [h_in, w_out, ry, rt, *taps, steps, w_in, o_mid, *halves, lane, *products]

    # 2. tasks, and in each the blocks of output channels
    if tiling.parallel == "channels":
        sch.reorder(o_out, n, h_out, w_block, *inner)
        block = task = sch.fuse(o_out, n, h_out, w_block)
    else:
        sch.reorder(n, h_out, w_block, o_out, *inner)
        task, block = sch.fuse(n, h_out, w_block), o_out

    # 3. the epilogue on each tile, the chains of a tile, the padded rows once per task
    sch.reverse_compute_at(out, w_out, preserve_unit_loops=True)
    if e.chained:
        sch.compute_at(sch.get_sblock("part"), steps, preserve_unit_loops=True)
    if spec.joined:
        patches = sch.get_sblock("patches")
        sch.compute_at(patches, task, preserve_unit_loops=True)
    if not e.direct:
        _schedule_rows(sch, tiling, task)
    if spec.joined:  # last: where an intrinsic stands, no producer can be computed any more
        copy = join_rows(spec.kernel[0], spec.row, e.run, dot.input_dtype)
        sch.tensorize(sch.get_loops(patches)[-1], copy)
    if spec.w_bits == 4 and not e.in_registers:
        _schedule_unpacking(sch, block, spec, tiling)
    if tiling.parallel != "none":
        sch.parallel(task)
    _vectorize_epilogue(sch, out, dot, e.outputs == spec.outputs)

    # 4. registers: after the loops that must see one whole reduction
    if not dot.tensorized:
        sch.reorder(*products, lane)
        sch.vectorize(lane)
        for half in halves:
            sch.unroll(half)
    if e.chained:
        _schedule_chain(sch, tiling, e)
    init = sch.decompose_reduction(acc, ry)
    *_, columns, channels, lanes = sch.get_loops(init)
    sch.vectorize(lanes)
    sch.unroll(channels)
    sch.unroll(columns)
    if dot.tensorized:
        stage = Stage.DOT_NIBBLES if e.in_registers else Stage.DOT
        if e.chained:
            stage = Stage.SCALE if spec.w_group else Stage.WIDEN
        first, *_ = [*halves, lane]
        sch.tensorize(first, isa.intrinsic(dot, stage))
    sch.unroll(w_in)
    sch.unroll(o_mid)


def _schedule_chain(sch: Schedule, tiling: Tiling, e: Extents) -> None:
    """Keep the 16-bit sums of one tile in registers over all steps of a chain."""
    part = sch.get_sblock("part")
    w, o, lane16, step, half, pair = sch.get_loops(part)[-6:]
    o_mid, lane = sch.split(o, [None, tiling.dot.lanes])
    # how fast a loop of one step is depends on its address (92 to 146 GMAC/s measured); many steps
    # no longer fit the cache of decoded instructions (122 GMAC/s with four of 14x1)
    short = tiling.chain <= 8 and tiling.column_tile * tiling.channel_tile <= 8
    unrolled = math.gcd(tiling.chain, 4 if short else 2) // (2 if e.in_registers else 1)
    step, steps = sch.split(step, [None, unrolled])
    sch.reorder(step, steps, w, o_mid, half, lane, lane16, pair)
    sch.unroll(steps)
    init = sch.decompose_reduction(part, step)
    *_, columns, channels, lanes, lanes16 = sch.get_loops(init)
    sch.vectorize(sch.fuse(lanes, lanes16))
    sch.unroll(channels)
    sch.unroll(columns)
    stage = Stage.CHAIN_NIBBLES if e.in_registers else Stage.CHAIN
    sch.tensorize(half if e.in_registers else lane, isa.intrinsic(tiling.dot, stage))
    sch.unroll(w)
    sch.unroll(o_mid)


def _schedule_unpacking(sch: Schedule, block: Any, spec: Conv2DSpec, tiling: Tiling) -> None:
    """Unpack the weights of one block of output channels before it, once for all its pixels."""
    unpacked = sch.get_sblock("unpacked")
    sch.compute_at(unpacked, block, preserve_unit_loops=True)
    half, lane, j = sch.get_loops(unpacked)[-3:]
    scaled = spec.w_group > 0 and not Extents.of(spec, tiling).chained
    if scaled and isa.offers(tiling.dot, Stage.UNPACK_SCALED):
        sch.tensorize(half, isa.intrinsic(tiling.dot, Stage.UNPACK_SCALED))
        return
    sch.unroll(half)
    sch.vectorize(sch.fuse(lane, j))


def _schedule_rows(sch: Schedule, tiling: Tiling, task: Any) -> None:
    rows = sch.get_sblock("rows")
    if tiling.parallel == "channels":
        n, h, _ = sch.get_loops(rows)
        sch.parallel(sch.fuse(n, h))
    else:
        sch.compute_at(rows, task, preserve_unit_loops=True)
    # the border is peeled off, so that the interior is copied vector by vector
    steps, vector = sch.split(sch.get_loops(rows)[-1], [None, COPIED])
    sch.annotate(steps, "pragma_loop_partition_hint", 1)
    sch.vectorize(vector)


def _vectorize_epilogue(sch: Schedule, out: Any, dot: DotProduct, whole: bool) -> None:
    *_, column, channel = sch.get_loops(out)
    blocks, lanes = sch.split(channel, [None, dot.lanes])
    sch.unroll(column)
    sch.unroll(blocks)
    if whole:  # a predicate on the channel would make LLVM store lane by lane
        sch.vectorize(lanes)


def kernel(spec: Conv2DSpec, tiling: Tiling, operation: str = "conv2d") -> tirx.PrimFunc:
    """Return the scheduled kernel of a (flattened) layer.

    Its name holds the operation, types, instruction, register tile, geometry and epilogue, for
    profiles.

    Raises
    ------
    TargetError
        When the tiling adds up more products in 16 bits than the spec's chain proves to fit.
    """
    if tiling.dot.saturates and tiling.chain > spec.chain:
        raise TargetError(
            f"tiling {tiling} of {operation} adds up {tiling.chain} steps in 16 bits, its weights "
            f"allow {spec.chain}; choose one of schedules.conv2d.tilings"
        )
    sch = Schedule(compute(spec, tiling))
    schedule(sch, spec, tiling)
    function = skip_padding(sch.mod["main"], spec, tiling)
    geometry = f"{spec.height}x{spec.width}x{spec.channels}o{spec.outputs}"
    if not spec.pointwise:
        geometry += f"k{spec.kernel[0]}x{spec.kernel[1]}s{spec.strides[0]}"
    e = Extents.of(spec, tiling)
    tile = f"{tiling.dot.name}_tile{tiling.column_tile}x{tiling.channel_tile}"
    if e.chained:
        tile += f"_chain{tiling.chain}"
    if e.in_registers:
        tile += "_nibbles"
    if tiling.flat:
        tile += "_flat"
    name = f"{operation}_{_types(spec)}_{tile}_{geometry}_{_ending(spec.epilogue)}"
    return with_facts(function, name, operation)


def _ending(epilogue: Epilogue | FloatEpilogue | None) -> str:
    if epilogue is None:
        return "accumulate"
    if isinstance(epilogue, FloatEpilogue):
        clips = math.isfinite(epilogue.low) or math.isfinite(epilogue.high)
        return "bias" + ("_add" if epilogue.residual else "") + ("_clip" if clips else "")
    parts = ["requantize"]
    if epilogue.compute_dtype == "int64":
        parts.append("wide")
    if epilogue.residual:
        parts.append("add")
    if epilogue.slopes:
        parts.append("slopes")
    if epilogue.table:
        parts.append("table")
    return "_".join(parts)


def _types(spec: Conv2DSpec) -> str:
    """Return the types of input, weight (with its groups) and accumulator."""
    if spec.dtype == "float32":
        return "f32"
    groups = f"g{spec.w_group}" if spec.w_group else ""
    return f"u8s{spec.w_bits}{groups}s32"


def target_tiling(spec: Conv2DSpec, machine: Machine) -> Tiling:
    """Choose the default tiling of a (flattened) layer for a machine."""
    target = machine.target
    dots = (fma(target),) if spec.dtype == "float32" else dot_products(target)
    return default_tiling(spec, dots, machine)
