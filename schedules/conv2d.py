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
8. *Bits* (`conv2d_binary`) come packed (`pack_bits`), and are counted where they differ: by
   popcount of words, or, in chains of 8 bits, in a table of counts that fits a register
   (`isa.binary_stages`). Activations of 2 or 3 bits and ternary weights are planes of bits, whose
   counts are added up after the window.

9. *AArch64* (`isa.arm_dot`). 16 input channels are loaded at once, and each four of them meet
   weights of eight outputs that lie together (`DotProduct.together`, `vectors`). Where bytes are
   multiplied as signed ones, 128 is taken off while rows are copied and given back by the bias;
   products with padding are no zeros then. Matrix products read windows of two pixels side by side,
   which are copied so (`DotProduct.rows`); they, and partial sums (`DotProduct.partial`), are put
   in order after the window. Results are narrowed by instructions that clip.

Measured on Zen 3 with the features of haswell, one thread, against our 8-bit kernels of the same
layers of ResNet-50 (98 GMAC/s; registers alone allow 99): W4A4 1.47-1.55x, W4A8 1.26-1.47x, in
groups of 32 1.22-1.34x (registers alone allow 1.68x for chains); 1.35x, 1.21x and 1.03x where 64
channels make 256 and the epilogue counts; a dense layer of one row 1.02x, 0.98x and 0.94x from the
third-level cache, at half the bytes. SqueezeNet as a whole: 1.35x, 1.27x and 1.19x. W1A1, by counts
looked up, 4.9-5.5x on 3x3 layers, 4.1x where 256 channels make 256 in 1x1 and 5.0x where 512 make
512; counting the bytes of xor'ed words is at most 3.7x on registers alone. On Zen 5, with what
packs the bits, of six layers of 128 channels or more (`benchmarks kernels --binary`): W1A1 4.5x,
W1A2 2.4x, W1A3 1.7x and ternary W2A1 2.5x with vpopcntd, 5.4x, 2.9x, 1.9x and 2.9x as AVX2.

Rejected: packing bits in the kernel (each of two layers that read the same signs packs them, and a
sign cannot be a comparison of bytes). Keeping window rows unpadded with a predicate (tensorization
refuses predicates). On AVX2, ``vpmaddubsw`` (96 GMAC/s on one 3x3 layer) is used where it is proven
that it cannot saturate, else ``vpmaddwd`` on 16-bit words (77 GMAC/s, twice the weight bytes).
Unpacking in registers in every tile (0.68 to 0.85 of the speed on 28x28 128->128 3x3), or once per
block also for a single pixel (0.65 of the speed in registers).
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule

from tvmquant.errors import TargetError
from tvmquant.machine import Machine
from tvmquant.schedules import isa
from tvmquant.schedules.conv2d_binary import LONGEST_COUNT, counts
from tvmquant.schedules.conv2d_compute import (
    COPIED,
    compute,
    input_shape,
    output_shape,
    padded_outputs,
)
from tvmquant.schedules.conv2d_packing import (
    CHANNELS,
    check_narrow,
    container_of,
    group_scale,
    pack_bias,
    pack_scale,
    pack_weight,
    provable_chain,
    weight_layout,
)
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.conv2d_tiling import default_tiling, tilings
from tvmquant.schedules.epilogue import Epilogue, FloatEpilogue
from tvmquant.schedules.isa import DotProduct, Stage, binary_dot_products, dot_products, fma
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.patch_intrinsics import join_rows
from tvmquant.schedules.skip_padding import asks, skip_padding

__all__ = [
    "CHANNELS",
    "Conv2DSpec",
    "Tiling",
    "check_narrow",
    "compute",
    "container_of",
    "counts",
    "default_tiling",
    "group_scale",
    "input_shape",
    "kernel",
    "output_shape",
    "pack_bias",
    "pack_scale",
    "pack_weight",
    "padded_outputs",
    "provable_chain",
    "schedule",
    "target_dots",
    "target_tiling",
    "tilings",
    "weight_layout",
]


def schedule(sch: Schedule, spec: Conv2DSpec, tiling: Tiling) -> None:
    """Schedule `compute` (steps 1-9 of the module's description)."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    acc, out = sch.get_sblock("acc"), sch.get_sblock("out")

    # 1. cut the loops; ``steps`` are around a tile, ``products`` within its instructions
    loops = sch.get_loops(acc)
    planes = [loops.pop(3)] if spec.binary else []
    partial = [loops.pop(4)] if dot.partial > 1 else []
    n, h, w, o, ry, rt, *reduced = loops
    halves = []
    if e.chained:
        steps, *products = reduced
    elif e.in_registers:
        steps, *halves, k_in = reduced
        products = [k_in]
    elif partial:
        steps, *products = reduced
    else:
        steps, *products = sch.split(reduced[0], [None, dot.group])
    taps = []
    if e.taps_apart and asks(spec, tiling):
        *taps, steps = sch.split(steps, [spec.kernel[1], None])
    unrolled = []
    if not e.chained and not e.in_registers and dot.cost.unrolled > 1:
        count = math.gcd(int(sch.get(steps).extent), dot.cost.unrolled)
        steps, *unrolled = sch.split(steps, [None, count])
    h_out, h_in = sch.split(h, [None, tiling.row_block])
    w_block, w_out, w_in = sch.split(
        w, [None, tiling.column_block // tiling.column_tile, tiling.column_tile]
    )
    o_out, o_mid, lane = sch.split(o, [None, tiling.channel_tile, dot.lanes])
    around = [h_in, w_out, ry, rt, *taps, steps, *unrolled]
    inner = [*around, w_in, *planes, o_mid, *halves, lane, *partial, *products]

    # 2. tasks, and in each the blocks of output channels
    if tiling.parallel == "channels":
        sch.reorder(o_out, n, h_out, w_block, *inner)
        block = task = sch.fuse(o_out, n, h_out, w_block)
    else:
        sch.reorder(n, h_out, w_block, o_out, *inner)
        task, block = sch.fuse(n, h_out, w_block), o_out

    # 3. the epilogue on each tile, the chains of a tile, the padded rows once per task
    if spec.planes > 1:
        _schedule_planes(sch, w_out, tiling)
    if partial or dot.rows > 1:
        sch.reverse_compute_at(sch.get_sblock("collected"), w_out, preserve_unit_loops=True)
    sch.reverse_compute_at(out, w_out, preserve_unit_loops=True)
    if e.chained:
        sch.compute_at(sch.get_sblock("part"), steps, preserve_unit_loops=True)
    if dot.rows > 1:
        _schedule_pairs(sch, tiling, task)
    elif spec.joined:
        patches = sch.get_sblock("patches")
        sch.compute_at(patches, task, preserve_unit_loops=True)
    if not e.direct:
        _schedule_rows(sch, tiling, task)
    if spec.joined and dot.rows == 1:
        # last: where an intrinsic stands, no producer can be computed any more
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
    if dot.looks_up:
        _schedule_counts(sch, tiling)
    elif e.chained:
        _schedule_chain(sch, tiling, e)
    if partial:
        _schedule_collecting(sch, dot)
    pairs = []
    if dot.rows > 1:
        w_in, *pairs = sch.split(w_in, [None, dot.rows])
        sch.reorder(w_in, o_mid, *pairs, lane)
        _schedule_matrices(sch, dot)
    init = sch.decompose_reduction(acc, ry)
    *outer, lanes = sch.get_loops(init)
    sch.vectorize(lanes)
    for loop in outer[-2 - len(planes) - len(partial) :]:
        sch.unroll(loop)
    if dot.tensorized:
        stage = Stage.DOT_NIBBLES if e.in_registers else Stage.DOT
        if dot.looks_up:
            stage = Stage.WIDEN_COUNTS
        elif e.chained:
            stage = Stage.SCALE if spec.w_group else Stage.WIDEN
        first, *_ = [*halves, *pairs, lane]
        sch.tensorize(first, isa.intrinsic(dot, stage))
    for loop in (*unrolled, w_in, *planes, o_mid):
        sch.unroll(loop)


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
    if tiling.dot.piece < tiling.dot.group:  # pieces of one product follow each other
        sch.transform_layout(
            unpacked, ("write", 0),
            lambda ob, ry, rt, byte, half, lane, j: (ob, ry, rt, byte * 2 + half, lane, j),
        )  # fmt: skip
    scaled = spec.w_group > 0 and not Extents.of(spec, tiling).chained
    if scaled and isa.offers(tiling.dot, Stage.UNPACK_SCALED):
        sch.tensorize(half, isa.intrinsic(tiling.dot, Stage.UNPACK_SCALED))
        return
    sch.unroll(half)
    sch.vectorize(sch.fuse(lane, j))


def _schedule_counts(sch: Schedule, tiling: Tiling) -> None:
    """Keep the 8-bit sums of one tile in registers over all steps of a chain."""
    part = sch.get_sblock("part")
    w, plane, pairs, odd, step = sch.get_loops(part)[-5:]
    o_mid, pair = sch.split(pairs, [None, tiling.dot.lanes // 2])
    step, steps = sch.split(step, [None, math.gcd(tiling.chain, 2)])
    sch.reorder(step, steps, w, plane, o_mid, pair, odd)
    sch.unroll(steps)
    init = sch.decompose_reduction(part, step)
    *_, columns, planes, channels, pairs, odds = sch.get_loops(init)
    sch.vectorize(sch.fuse(pairs, odds))
    for loop in (channels, planes, columns):
        sch.unroll(loop)
    sch.tensorize(pair, isa.intrinsic(tiling.dot, Stage.COUNT))
    for loop in (w, plane, o_mid):
        sch.unroll(loop)


def _schedule_planes(sch: Schedule, tile: Any, tiling: Tiling) -> None:
    """Add up the counts of all planes of a tile."""
    counts = sch.get_sblock("counts")
    sch.reverse_compute_at(counts, tile, preserve_unit_loops=True)
    column, channel, plane = sch.get_loops(counts)[-3:]
    block, lane = sch.split(channel, [None, tiling.dot.lanes])
    sch.reorder(column, block, plane, lane)
    for loop in (column, block, plane):
        sch.unroll(loop)
    sch.vectorize(lane)


def _schedule_collecting(sch: Schedule, dot: DotProduct) -> None:
    """Add up the partial sums of a tile."""
    collected = sch.get_sblock("collected")
    *_, column, channel, _ = sch.get_loops(collected)
    block, lane = sch.split(channel, [None, dot.lanes])
    init = sch.decompose_reduction(collected, column)
    *_, columns, blocks, lanes = sch.get_loops(init)
    sch.vectorize(lanes)
    sch.unroll(blocks)
    sch.unroll(columns)
    sch.tensorize(lane, isa.intrinsic(dot, Stage.COLLECT))
    sch.unroll(column)
    sch.unroll(block)


def _schedule_pairs(sch: Schedule, tiling: Tiling, task: Any) -> None:
    """Copy the windows of two pixels side by side, ``group`` elements of each in turn."""
    patches, rows, group = sch.get_sblock("patches"), tiling.dot.rows, tiling.dot.group
    if tiling.parallel == "channels":
        n, h, w, *_ = sch.get_loops(patches)
        sch.parallel(sch.fuse(n, h, w))
    else:
        sch.compute_at(patches, task, preserve_unit_loops=True)
    *_, last = sch.get_loops(patches)
    _, vector = sch.split(last, [None, group])
    sch.vectorize(vector)
    sch.transform_layout(
        patches, ("write", 0),
        lambda n, h, w, window, k: (n, h, w // rows, window, k // group, w % rows, k % group),
    )  # fmt: skip


def _schedule_matrices(sch: Schedule, dot: DotProduct) -> None:
    """Keep the sums of two pixels and two outputs in one register until the window is done."""
    rows = dot.rows
    sch.transform_layout(
        "acc", ("write", 0), lambda n, h, w, o: (n, h, w // rows, o // 2, w % rows, o % 2)
    )
    *_, column, channel = sch.get_loops(sch.get_sblock("collected"))
    pair, row = sch.split(column, [None, rows])
    block, lane = sch.split(channel, [None, dot.lanes])
    sch.reorder(pair, block, row, lane)
    sch.tensorize(row, isa.intrinsic(dot, Stage.COLLECT))
    sch.unroll(pair)
    sch.unroll(block)


def _schedule_rows(sch: Schedule, tiling: Tiling, task: Any) -> None:
    rows = sch.get_sblock("rows")
    if tiling.parallel == "channels":
        *outer, _ = sch.get_loops(rows)
        sch.parallel(sch.fuse(*outer))
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
    if tiling.dot.looks_up and tiling.chain > LONGEST_COUNT:
        raise TargetError(
            f"tiling {tiling} of {operation} adds up {tiling.chain} counts in 8 bits, which hold "
            f"{LONGEST_COUNT}; choose one of schedules.conv2d.tilings"
        )
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
    if spec.binary:
        return f"u{spec.input_planes}s{spec.weight_planes}s32"  # ternary weights have two bits
    groups = f"g{spec.w_group}" if spec.w_group else ""
    return f"u8s{spec.w_bits}{groups}s32"


def target_tiling(spec: Conv2DSpec, machine: Machine) -> Tiling:
    """Choose the default tiling of a (flattened) layer for a machine."""
    return default_tiling(spec, target_dots(spec, machine), machine)


def target_dots(spec: Conv2DSpec, machine: Machine) -> tuple[DotProduct, ...]:
    """Return what a machine can multiply a layer with, the fastest first."""
    if spec.binary:
        return binary_dot_products(machine.target)
    return (fma(machine.target),) if spec.dtype == "float32" else dot_products(machine.target)
