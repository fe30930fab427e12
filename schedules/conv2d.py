"""Convolution and dense layers, NHWC, with a fused epilogue: 8-bit integers, or float32.

Matches ``acc[n, h, w, o] = bias[o] + sum(x[n, h', w', c] * weight[o, ry, rx, c])`` in int32
followed by `tvmquant.schedules.epilogue`, for any stride, padding, dilation and groups. A dense
layer is the 1x1 case with one pixel per row of the batch. The same loops compute a float build's
layers, with float32 operands and accumulators (`isa.fma`) and `FloatEpilogue`.

Strategy

1. *Operands side by side.* One instruction reads ``group`` neighbouring input channels, broadcast,
   against ``lanes`` output channels (`isa.DotProduct`), so weights are packed
   ``[O / lanes][kh][taps][K / group][lanes][group]``. Without dilation a row of the window is one
   contiguous run of ``kw * C`` bytes: one reduction loop covers both, and 3-channel inputs waste
   only the bytes that round ``kw * C`` up to ``group``.
2. *Registers.* A tile of ``column_tile`` pixels by ``channel_tile`` vectors of output channels
   accumulates over the whole window; more accumulators than registers would spill (3x slower).
3. *Padding* (and widening to 16 bits for ``vpmaddwd``) copies the input rows of one task into a
   small buffer inside the parallel loop, so that the inner loops have no branches. Extents that the
   tile does not divide are computed past the edge on such padded rows and not stored. A 1x1
   convolution whose extents divide needs no copy and reads its input in place.
4. *Epilogue* on the tile while it is in registers.
5. *Parallel* over row blocks, or, where the weights outweigh the activations (late layers), over
   blocks of output channels, so that each weight is read by one thread once.

Rejected: keeping window rows unpadded with a predicate (tensorization refuses predicates).
On AVX2, ``vpmaddubsw`` (96 GMAC/s on one 3x3 layer) is used where `pairs_fit` proves that it cannot
saturate, else ``vpmaddwd`` on 16-bit words (77 GMAC/s, twice the weight bytes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.schedules import x86_intrinsics
from tvmquant.schedules.epilogue import Epilogue, FloatEpilogue, apply_at, placeholders
from tvmquant.schedules.isa import DotProduct, dot_products, fma, saturates

# Input rows of one task, kept in the second-level cache beside the weights of one channel block.
ROWS_BYTES = 128 * 1024
# Pixels of a 1x1 layer handled by one task stay in the first-level cache.
CHUNK_BYTES = 24 * 1024
# Activations that fit here are cheap to read again for every block of output channels.
RESIDENT_BYTES = 384 * 1024
# Elements copied together into the padded rows.
COPIED = 32


@dataclass(frozen=True)
class Conv2DSpec:
    """Static parameters of a convolution, NHWC.

    Parameters
    ----------
    batch, height, width, channels : int
        Extents of the input.
    outputs : int
        Output channels.
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    groups : int
    input_zero_point : int
        Value of the padding.
    epilogue : Epilogue, FloatEpilogue or None
        None stores the accumulator.
    residual_dtype : str
        Type of the epilogue's residual.
    dtype : str
        Type of the input: ``"uint8"``, or ``"float32"`` where everything is float32.
    """

    batch: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    input_zero_point: int = 0
    epilogue: Epilogue | FloatEpilogue | None = None
    residual_dtype: str = "uint8"
    dtype: str = "uint8"

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
    def pointwise(self) -> bool:
        """Whether every output pixel reads exactly the input pixel at its own place."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and self.padding == (0, 0, 0, 0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer."""
        window = self.kernel[0] * self.kernel[1] * self.channels // self.groups
        return self.batch * self.out_height * self.out_width * self.outputs * window

    def flattened(self) -> Conv2DSpec:
        """Return a pointwise layer as one row of ``batch * height * width`` pixels."""
        if not self.pointwise:
            return self
        return replace(self, batch=1, height=1, width=self.batch * self.height * self.width)


@dataclass(frozen=True)
class Tiling:
    """How the loops are cut; every number is explained by the module's strategy.

    Parameters
    ----------
    dot : DotProduct
        Instruction.
    column_tile : int
        Output pixels of one row accumulated together in registers.
    channel_tile : int
        Vectors of output channels accumulated together in registers.
    row_block, column_block : int
        Output rows and columns of one task; column_block is a multiple of column_tile.
    parallel : str
        ``"rows"`` or ``"channels"``.
    """

    dot: DotProduct
    column_tile: int
    channel_tile: int
    row_block: int
    column_block: int
    parallel: str


@dataclass(frozen=True)
class _Extents:
    """Padded extents of a tiled layer."""

    rows: int
    columns: int
    outputs: int
    taps: int
    pixel: int
    run: int
    merged: bool
    direct: bool

    @classmethod
    def of(cls, spec: Conv2DSpec, tiling: Tiling) -> _Extents:
        group = tiling.dot.group
        merged = spec.dilation[1] == 1 and spec.groups == 1
        per_group = _round_up(spec.channels // spec.groups, 1 if merged else group)
        run = _round_up(spec.kernel[1] * spec.channels, group) if merged else per_group
        rows = _round_up(spec.out_height, tiling.row_block)
        columns = _round_up(spec.out_width, tiling.column_block)
        direct = (
            spec.kernel == (1, 1)
            and spec.padding == (0, 0, 0, 0)
            and tiling.dot.input_dtype == spec.dtype
            and (rows, columns) == (spec.out_height, spec.out_width)
            and (spec.channels // spec.groups) % group == 0
        )
        return cls(
            rows=rows,
            columns=columns,
            outputs=_round_up(spec.outputs, tiling.dot.lanes * tiling.channel_tile),
            taps=1 if merged else spec.kernel[1],
            pixel=per_group * spec.groups,
            run=run,
            merged=merged,
            direct=direct,
        )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def input_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, ...]:
    """Return the shape in which the kernel takes its input: NHWC, or (N, H, W * C) if it copies."""
    if _Extents.of(spec, tiling).direct:
        return (spec.batch, spec.height, spec.width, spec.channels)
    return (spec.batch, spec.height, spec.width * spec.channels)


def padded_outputs(spec: Conv2DSpec, tiling: Tiling) -> int:
    """Return the length of the per-channel vectors the kernel takes (zeros beyond the channels)."""
    return _Extents.of(spec, tiling).outputs


def pack_weight(weight: npt.NDArray[Any], spec: Conv2DSpec, tiling: Tiling) -> npt.NDArray[Any]:
    """Pack an OHWI weight for the kernel.

    Parameters
    ----------
    weight : int8 or float32 array of shape (O, kh, kw, C / groups)

    Returns
    -------
    array of shape (O' / lanes, kh, taps, K / group, lanes, group)
        Of the dot product's weight type; zeros where extents are padded.
    """
    extents, dot = _Extents.of(spec, tiling), tiling.dot
    outputs, kernel_h = weight.shape[:2]
    runs = _runs(weight, extents.merged)
    packed = np.zeros((extents.outputs, kernel_h, extents.taps, extents.run), dot.weight_dtype)
    packed[:outputs, :, :, : runs.shape[3]] = runs
    blocks = packed.reshape(
        extents.outputs // dot.lanes,
        dot.lanes,
        kernel_h,
        extents.taps,
        extents.run // dot.group,
        dot.group,
    )
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 4, 1, 5))


def _runs(weight: npt.NDArray[Any], merged: bool) -> npt.NDArray[Any]:
    """Return the weight as (O, kh, taps, run)."""
    outputs, kernel_h, kernel_w, channels = weight.shape
    return weight.reshape(outputs, kernel_h, 1, kernel_w * channels) if merged else weight


def pairs_fit(weight: npt.NDArray[np.int8], spec: Conv2DSpec) -> bool:
    """Prove that no sum of two neighbouring products leaves 16 bits.

    Parameters
    ----------
    weight : int8 array of shape (O, kh, kw, C / groups)

    Notes
    -----
    For activations in [0, 255] the sum lies in 255 * [sum of negative, sum of positive weights].
    """
    runs = _runs(weight, spec.dilation[1] == 1 and spec.groups == 1).astype(np.int32)
    if runs.shape[3] % 2:
        runs = np.pad(runs, ((0, 0), (0, 0), (0, 0), (0, 1)))
    positive, negative = np.maximum(runs, 0), np.minimum(runs, 0)
    highest = int((positive[..., ::2] + positive[..., 1::2]).max(initial=0))
    lowest = int((negative[..., ::2] + negative[..., 1::2]).min(initial=0))
    return 255 * highest < 2**15 and 255 * lowest >= -(2**15)


def compute(spec: Conv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Define the layer on padded extents: blocks ``rows`` (unless direct), ``acc`` and ``out``.

    Arguments of the function: x, weight (packed), bias, the epilogue's vectors (each of
    `padded_outputs` entries), residual, residual multiplier, table, and last the output.
    """
    e, dot = _Extents.of(spec, tiling), tiling.dot
    x = te.placeholder(input_shape(spec, tiling), spec.dtype, name="x")
    weight = te.placeholder(
        (e.outputs // dot.lanes, spec.kernel[0], e.taps, e.run // dot.group, dot.lanes, dot.group),
        dot.weight_dtype,
        name="weight",
    )
    bias = te.placeholder((e.outputs,), dot.accumulator_dtype, name="bias")
    out_shape = (spec.batch, spec.out_height, spec.out_width, spec.outputs)
    extra = placeholders(spec.epilogue, e.outputs, out_shape, spec.residual_dtype)

    stride_h, stride_w = spec.strides
    dilation_h, dilation_w = spec.dilation
    group_outputs = spec.outputs // spec.groups
    group_pixels = e.pixel // spec.groups
    rows = None if e.direct else _padded_rows(x, spec, e, dot)

    ry = te.reduce_axis((0, spec.kernel[0]), "ry")
    rt = te.reduce_axis((0, e.taps), "rt")
    rk = te.reduce_axis((0, e.run), "rk")

    def product(n: Any, h: Any, w: Any, o: Any) -> Any:
        first = (o // group_outputs) * group_pixels if spec.groups > 1 else 0
        if rows is None:
            value = x[n, h * stride_h, w * stride_w, first + rk]
        else:
            column = (w * stride_w + rt * dilation_w) * e.pixel
            value = rows[n, h * stride_h + ry * dilation_h, column + first + rk]
        factor = weight[o // dot.lanes, ry, rt, rk // dot.group, o % dot.lanes, rk % dot.group]
        operands = [operand.astype(dot.accumulator_dtype) for operand in (value, factor)]
        return te.sum(operands[0] * operands[1], axis=[ry, rt, rk])

    acc = te.compute((spec.batch, e.rows, e.columns, e.outputs), product, name="acc")

    def finish(n: Any, h: Any, w: Any, o: Any) -> Any:
        total = acc[n, h, w, o] + bias[o]
        return apply_at(spec.epilogue, total, extra, (n, h, w, o))

    out = te.compute(out_shape, finish, name="out")
    return te.create_prim_func([x, weight, bias, *extra, out])


def _padded_rows(x: te.Tensor, spec: Conv2DSpec, e: _Extents, dot: DotProduct) -> te.Tensor:
    """Define the padded, widened input rows, flat over (column, channel)."""
    height = (e.rows - 1) * spec.strides[0] + (spec.kernel[0] - 1) * spec.dilation[0] + 1
    reach = (e.columns - 1) * spec.strides[1] + (e.taps - 1) * spec.dilation[1]
    columns = reach + -(-e.run * (1 if e.merged else spec.groups) // e.pixel)
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

    width = _round_up(columns * e.pixel, COPIED)
    return te.compute((spec.batch, height, width), value, name="rows")


def schedule(sch: Schedule, spec: Conv2DSpec, tiling: Tiling) -> None:
    """Schedule `compute` (steps 1-5 of the module's description)."""
    e, dot = _Extents.of(spec, tiling), tiling.dot
    acc, out = sch.get_sblock("acc"), sch.get_sblock("out")

    # 1. cut the loops
    n, h, w, o, ry, rt, rk = sch.get_loops(acc)
    h_out, h_in = sch.split(h, [None, tiling.row_block])
    w_block, w_out, w_in = sch.split(
        w, [None, tiling.column_block // tiling.column_tile, tiling.column_tile]
    )
    o_out, o_mid, lane = sch.split(o, [None, tiling.channel_tile, dot.lanes])
    k_out, k_in = sch.split(rk, [None, dot.group])
    inner = [h_in, w_out, ry, rt, k_out, w_in, o_mid, lane, k_in]

    # 2. tasks
    if tiling.parallel == "channels":
        sch.reorder(o_out, n, h_out, w_block, *inner)
        task = sch.fuse(o_out, n, h_out, w_block)
    else:
        sch.reorder(n, h_out, w_block, o_out, *inner)
        task = sch.fuse(n, h_out, w_block)

    # 3. the epilogue on each tile, the padded rows once per task
    sch.reverse_compute_at(out, w_out, preserve_unit_loops=True)
    if not e.direct:
        _schedule_rows(sch, tiling, task, e)
    sch.parallel(task)
    _vectorize_epilogue(sch, out, dot, e.outputs == spec.outputs)

    # 4. registers: after the loops that must see one whole reduction
    if not dot.tensorized:
        sch.reorder(k_in, lane)
        sch.vectorize(lane)
    init = sch.decompose_reduction(acc, ry)
    *_, columns, channels, lanes = sch.get_loops(init)
    sch.vectorize(lanes)
    sch.unroll(channels)
    sch.unroll(columns)
    if dot.tensorized:
        sch.tensorize(lane, x86_intrinsics.intrinsic(dot))
    sch.unroll(w_in)
    sch.unroll(o_mid)


def _schedule_rows(sch: Schedule, tiling: Tiling, task: Any, e: _Extents) -> None:
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


def default_tiling(spec: Conv2DSpec, dots: tuple[DotProduct, ...], threads: int) -> Tiling:
    """Choose a tiling from registers, caches and exact division, without measuring.

    Parameters
    ----------
    spec : Conv2DSpec
        Pointwise layers already `flattened`.
    dots : tuple of DotProduct
        What the target offers (`isa.dot_products`).
    threads : int
        Threads that share the work.
    """
    best: tuple[float, Tiling] | None = None
    for dot in _usable(spec, dots):
        for columns, channels in _register_tiles(dot):
            if columns > max(spec.out_width, 1):
                continue
            if spec.groups > 1 and (spec.outputs // spec.groups) % (dot.lanes * channels):
                continue
            cost = _tile_cost(spec, dot, columns, channels)
            if best is None or cost < best[0]:
                best = cost, _tasks(spec, dot, columns, channels, threads)
    assert best is not None  # one column by one vector fits any layer
    return best[1]


def _usable(spec: Conv2DSpec, dots: tuple[DotProduct, ...]) -> list[DotProduct]:
    """Keep the dot products that suit the layer's groups; narrow the generic one until it does."""
    if spec.groups == 1:
        return [d for d in dots if d.tensorized] or [dots[-1]]
    outputs, inputs = spec.outputs // spec.groups, spec.channels // spec.groups
    fitting = [d for d in dots if d.tensorized and outputs % d.lanes == 0 and inputs % d.group == 0]
    return fitting or [replace(dots[-1], lanes=math.gcd(outputs, dots[-1].lanes))]


def _register_tiles(dot: DotProduct) -> list[tuple[int, int]]:
    """Return (pixels, vectors) whose accumulators and operands fit in the registers."""
    tiles = []
    for channels in (1, 2, 3, 4, 6, 8):
        for columns in range(1, 29):
            # pmaddubsw needs a vector of ones and two of intermediate sums
            scratch = 4 if saturates(dot) else 3 if dot.registers > 16 else 2
            if columns * channels + channels + scratch <= dot.registers:
                tiles.append((columns, channels))
    return tiles


def _tile_cost(spec: Conv2DSpec, dot: DotProduct, columns: int, channels: int) -> float:
    """Estimate cycles of the layer, up to a constant, for one register tile.

    One step of the reduction issues ``columns * channels`` dot products (one instruction of VNNI,
    two with pmaddwd, three with pmaddubsw), reads ``channels`` vectors and broadcasts ``columns``
    scalars.
    """
    width = _round_up(spec.out_width, columns)
    outputs = _round_up(spec.outputs, dot.lanes * channels)
    products = columns * channels
    instructions = 3 if saturates(dot) else 1 if spec.dtype == "float32" else 4 // dot.group
    multiplications = 2 if saturates(dot) else 1
    per_step = dot.lanes / 16.0 if dot.registers > 16 else 0.5
    multiply = products * multiplications * per_step
    loads = columns * 0.5 + channels * (1.0 if dot.lanes == 16 else 0.5)
    issue = (products * instructions + columns + channels + 2) / 5.0
    run = _round_up(spec.kernel[1] * spec.channels // spec.groups, dot.group) * spec.kernel[0]
    # operands compete with the products for ports: measured 98 GMAC/s with 2x4 and 4x2, 90 with 7x1
    tile = (max(multiply, loads, issue) + 0.2 * (columns + channels)) * run / dot.group
    finish = 8.0 if isinstance(spec.epilogue, Epilogue) else 2.0
    if spec.out_width % columns:
        finish += 4.0  # each pixel is stored under a condition
    epilogue = products * finish / 4.0 + channels
    return (width / columns) * (outputs / (channels * dot.lanes)) * (tile + epilogue + 8.0)


def _tasks(spec: Conv2DSpec, dot: DotProduct, columns: int, channels: int, threads: int) -> Tiling:
    """Divide the layer into tasks for ``threads`` threads."""
    item = np.dtype(dot.input_dtype).itemsize
    height, width = spec.out_height, _round_up(spec.out_width, columns)
    window = spec.kernel[0] * spec.kernel[1] * spec.channels // spec.groups
    weights = window * spec.outputs * np.dtype(dot.weight_dtype).itemsize
    inputs = spec.batch * spec.height * spec.width * spec.channels * item
    blocks = _round_up(spec.outputs, dot.lanes * channels) // (dot.lanes * channels)
    by_rows = _row_tiling(spec, dot, columns, channels, threads, item)
    tasks = spec.batch * -(-height // by_rows.row_block) * (width // by_rows.column_block)
    rows_balance = _balance(tasks, threads)
    channels_balance = _balance(blocks, threads)
    resident = inputs <= RESIDENT_BYTES and weights > inputs
    if (resident and channels_balance >= 0.85 * rows_balance) or channels_balance > 1.25 * (
        rows_balance
    ):
        return replace(by_rows, parallel="channels", row_block=height, column_block=width)
    return by_rows


def _balance(tasks: int, threads: int) -> float:
    """Return the share of thread time in use when ``tasks`` equal tasks are dealt out."""
    return tasks / (-(-tasks // threads) * threads)


def _row_tiling(
    spec: Conv2DSpec, dot: DotProduct, columns: int, channels: int, threads: int, item: int
) -> Tiling:
    height, width = spec.out_height, spec.out_width
    if height == 1:  # a flattened layer: cut the row
        tiles = -(-width // columns)
        limit = max(1, CHUNK_BYTES // (columns * spec.channels * item))
        per_task = _chunk(tiles, limit, threads)
        return Tiling(dot, columns, channels, 1, columns * per_task, "rows")
    row_bytes = spec.width * spec.channels * item * spec.strides[0]
    limit = max(1, min(8, ROWS_BYTES // row_bytes))
    block = _best_divisor(height, limit, spec.batch, threads)
    return Tiling(dot, columns, channels, block, _round_up(width, columns), "rows")


def _chunk(tiles: int, limit: int, threads: int) -> int:
    """Return how many tiles a task takes, at most ``limit``, wasting least time at the end."""
    sizes = range(max(1, limit // 2), limit + 1) if tiles > limit else range(1, tiles + 1)

    def rounds(size: int) -> int:
        tasks = -(-tiles // size)
        return -(-tasks // threads) * size

    least = min(rounds(size) for size in sizes)
    return max(size for size in sizes if rounds(size) <= least * 1.01)


def _best_divisor(extent: int, limit: int, outer: int, threads: int) -> int:
    """Return the largest divisor of ``extent`` up to ``limit`` that leaves the threads balanced."""
    divisors = [d for d in range(1, min(limit, extent) + 1) if extent % d == 0]
    best = max(_balance(outer * extent // d, threads) for d in divisors)
    return max(d for d in divisors if _balance(outer * extent // d, threads) >= best - 0.06)


def kernel(spec: Conv2DSpec, tiling: Tiling, operation: str = "conv2d") -> tirx.PrimFunc:
    """Return the scheduled kernel of a (flattened) layer.

    Its attribute ``tvmquant.kernel`` names the operation, types, instruction, register tile,
    geometry and epilogue, for profiles.
    """
    sch = Schedule(compute(spec, tiling))
    schedule(sch, spec, tiling)
    geometry = f"{spec.height}x{spec.width}x{spec.channels}o{spec.outputs}"
    if not spec.pointwise:
        geometry += f"k{spec.kernel[0]}x{spec.kernel[1]}s{spec.strides[0]}"
    tile = f"{tiling.dot.name}_tile{tiling.column_tile}x{tiling.channel_tile}"
    types = "f32" if spec.dtype == "float32" else "u8s8s32"
    name = f"{operation}_{types}_{tile}_{geometry}_{_ending(spec.epilogue)}"
    return sch.mod["main"].with_attr("tvmquant.kernel", name)


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
    if epilogue.table:
        parts.append("table")
    return "_".join(parts)


def target_tiling(
    spec: Conv2DSpec, target: tvm.target.Target, threads: int, *, pairs: bool = False
) -> Tiling:
    """Choose the default tiling of a (flattened) layer for a target.

    Parameters
    ----------
    pairs : bool
        The weight was proven to fit instructions that add pairs of products in 16 bits.
    """
    if spec.dtype == "float32":
        return default_tiling(spec, (fma(target),), threads)
    return default_tiling(spec, dot_products(target, pairs=pairs), threads)
