"""Transposed convolution on 8-bit integers, NHWC, with a fused epilogue.

By definition a stride-1 convolution of the stretched input, whose empty positions hold the zero
point, with the flipped kernel. Output rows ``s q + phi`` of one phase phi meet only the kernel rows
ry with ``(phi + pad - ry d) mod s = 0``, and of the input the rows

    ih = q + (phi + pad - ry d) / s                                                            (1)

Strategy

1. *Phases.* Each of the ``s_h * s_w`` phases is a stride-1 correlation of the unstretched input
   with its own taps, ``d / gcd(s, d)`` rows apart. What the zero point contributes through the
   other kernel elements is constant: it goes into a bias per phase (`pack_bias`). Phases with fewer
   taps than others are filled with zero weights.
2. *Operands side by side*, *registers*, *padding*, *epilogue*, *parallel* over rows: as in
   `tvmquant.schedules.conv2d`.
3. Where the output's extents are no multiples of the strides or of the register tile, accumulators
   are stored and finished in a second pass.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules import isa
from tvmquant.schedules.conv2d_transpose_spec import (
    CHANNELS,
    Conv2DTransposeSpec,
    Phases,
    Tiling,
    inputs_per_group,
    pack_bias,
    pack_weight,
    padded_outputs,
)
from tvmquant.schedules.epilogue import apply_at, placeholders
from tvmquant.schedules.isa import DotProduct, dot_products, narrowed
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import (
    PARALLEL_BYTES,
    overlap_tails,
    overlapping_lanes,
    round_up,
    vectorize,
)

__all__ = [
    "CHANNELS",
    "Conv2DTransposeSpec",
    "Tiling",
    "accumulators",
    "compute",
    "default_tiling",
    "kernel",
    "pack_bias",
    "pack_weight",
    "padded_outputs",
    "schedule",
]

COPY_LANES = 16


def compute(spec: Conv2DTransposeSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Define the layer: blocks ``rows``, ``acc`` (by phase) and ``out``.

    Arguments of the function: x, weight and bias (both packed), the epilogue's vectors (each of
    `padded_outputs` entries), residual, residual multiplier, table, and last the output.
    """
    by_row, by_column, dot = Phases.of(spec, 0), Phases.of(spec, 1), tiling.dot
    padded, inputs = padded_outputs(spec, tiling), inputs_per_group(spec, tiling)
    stride_h, stride_w = spec.strides
    steps_h = -(-spec.out_size[0] // stride_h)
    steps_w = round_up(-(-spec.out_size[1] // stride_w), tiling.column_tile)
    x = te.placeholder((spec.batch, spec.height, spec.width, spec.channels), "uint8", name="x")
    weight_shape = (
        *spec.strides,
        padded // dot.lanes,
        by_row.count,
        by_column.count,
        inputs // dot.group,
        dot.lanes,
        dot.group,
    )
    weight = te.placeholder(weight_shape, dot.weight_dtype, name="weight")
    bias = te.placeholder((stride_h, stride_w, padded), "int32", name="bias")
    out_shape = (spec.batch, *spec.out_size, spec.outputs)
    extra = placeholders(spec.epilogue, padded, out_shape, spec.residual_dtype)
    rows = _padded_rows(x, spec, tiling, (by_row, by_column), (steps_h, steps_w))

    ty = te.reduce_axis((0, by_row.count), "ty")
    tx = te.reduce_axis((0, by_column.count), "tx")
    rk = te.reduce_axis((0, inputs), "rk")
    outputs_per_group = spec.outputs // spec.groups

    def product(n: Any, q: Any, i: Any, v: Any, j: Any, o: Any) -> Any:
        i_row, row = _position(by_row, q, i, stride_h)
        i_column, column = _position(by_column, v, j, stride_w)
        row, column = row + ty * by_row.step, column + tx * by_column.step
        first = (o // outputs_per_group) * inputs if spec.groups > 1 else 0
        value = rows[n, i_row, row, i_column, column, first + rk]
        block, lane = o // dot.lanes, o % dot.lanes
        factor = weight[i, j, block, ty, tx, rk // dot.group, lane, rk % dot.group]
        return te.sum(value.astype("int32") * factor.astype("int32"), axis=[ty, tx, rk])

    shape = (spec.batch, steps_h, stride_h, steps_w, stride_w, padded)
    acc = te.compute(shape, product, name="acc")

    def finish(n: Any, h: Any, w: Any, o: Any) -> Any:
        i, j = h % stride_h, w % stride_w
        total = acc[n, h // stride_h, i, w // stride_w, j, o] + bias[i, j, o]
        return apply_at(spec.epilogue, total, extra, (n, h, w, o))

    return te.create_prim_func([x, weight, bias, *extra, te.compute(out_shape, finish, name="out")])


def _position(phases: Phases, q: Any, phase: Any, stride: int) -> tuple[Any, Any]:
    """Return the copy of the padded rows and the position in it that a phase's first tap meets."""
    if phases.shift is None:
        return phase, q
    return 0, q + (phase + phases.shift) // stride


def _padded_rows(
    x: te.Tensor,
    spec: Conv2DTransposeSpec,
    tiling: Tiling,
    phases: tuple[Phases, Phases],
    steps: tuple[int, int],
) -> te.Tensor:
    """Define the input with its padding, of the instruction's input type.

    Along an axis whose phases start at irregular positions, every phase has a copy of its own.
    """
    inputs, per_group = inputs_per_group(spec, tiling), spec.channels // spec.groups
    dtype = tiling.dot.input_dtype
    shape = [spec.batch]
    for count, p in zip(steps, phases, strict=True):
        reach = count + (p.count - 1) * p.step
        shape += (
            [len(p.first), reach] if p.shift is None else [1, reach + max(p.first) - min(p.first)]
        )
    zero = tirx.const(spec.input_zero_point, dtype)

    def start(p: Phases, phase: Any) -> Any:
        if p.shift is not None:
            return min(p.first)
        expr: Any = tirx.const(p.first[-1], "int32")
        for i in reversed(range(len(p.first) - 1)):
            expr = tirx.Select(phase == i, tirx.const(p.first[i], "int32"), expr)
        return expr

    def value(n: Any, i: Any, h: Any, j: Any, w: Any, c: Any) -> Any:
        row, column = h + start(phases[0], i), w + start(phases[1], j)
        inside = [row >= 0, row < spec.height, column >= 0, column < spec.width]
        channel = c
        if inputs != per_group:
            inside.append(c % inputs < per_group)
            channel = c // inputs * per_group + c % inputs
        return te.if_then_else(tirx.all(*inside), x[n, row, column, channel].astype(dtype), zero)

    return te.compute((*shape, inputs * spec.groups), value, name="rows")


def schedule(sch: Schedule, spec: Conv2DTransposeSpec, tiling: Tiling) -> None:
    """Schedule `compute` (steps 2 and 3 of the module's description)."""
    dot = tiling.dot
    rows, acc, out = (sch.get_sblock(name) for name in ("rows", "acc", "out"))

    if tiling.fused:
        n, h, w, o = sch.get_loops(out)
        q, i = sch.split(h, [None, spec.strides[0]])
        v, column = sch.split(w, [None, tiling.column_tile * spec.strides[1]])
        o_out, o_mid, lane = sch.split(o, [None, tiling.channel_tile, dot.lanes])
        sch.reorder(n, q, o_out, i, v, column, o_mid, lane)
        task = sch.fuse(n, q)
        sch.compute_at(acc, v, preserve_unit_loops=True)
        sch.compute_at(rows, task, preserve_unit_loops=True)
        if tiling.parallel:
            sch.parallel(task)
        sch.unroll(column)
        sch.unroll(o_mid)
        sch.vectorize(lane)
        v_in, j, o, ty, tx, rk = sch.get_loops(acc)[-6:]
        o_mid, lane = sch.split(o, [None, dot.lanes])
    else:
        n, q, i, v, j, o, ty, tx, rk = sch.get_loops(acc)
        v, v_in = sch.split(v, [None, tiling.column_tile])
        o_out, o_mid, lane = sch.split(o, [None, tiling.channel_tile, dot.lanes])
        sch.reorder(n, q, o_out, i, v, ty, tx, rk, v_in, j, o_mid, lane)
        task = sch.fuse(n, q)
        sch.compute_at(rows, task, preserve_unit_loops=True)
        finished = sch.get_loops(out)
        pixels = sch.fuse(*finished[:-1])
        vectorize(sch, finished[-1], overlapping_lanes(spec.outputs, 2 * dot.lanes))
        if tiling.parallel:
            sch.parallel(task)
            sch.parallel(pixels)

    copied = sch.get_loops(rows)[-1]
    inputs = inputs_per_group(spec, tiling)
    if inputs == spec.channels // spec.groups:
        vectorize(sch, copied, math.gcd(inputs * spec.groups, COPY_LANES))
    rk, k_in = sch.split(rk, [None, dot.group])
    sch.reorder(ty, tx, rk, v_in, j, o_mid, lane, k_in)
    if not dot.tensorized:
        sch.reorder(k_in, lane)
        sch.vectorize(lane)
    init = sch.decompose_reduction(acc, ty)
    *_, columns, phases, channels, lanes = sch.get_loops(init)
    sch.vectorize(lanes)
    for loop in (channels, phases, columns):
        sch.unroll(loop)
    if dot.tensorized:
        sch.tensorize(lane, isa.intrinsic(dot))
    for loop in (v_in, j, o_mid):
        sch.unroll(loop)


def accumulators(dot: DotProduct) -> int:
    """Return how many are in registers, beside vectors of weights, a broadcast and a sum."""
    return dot.registers - dot.registers // 8 - 2


def default_tiling(spec: Conv2DTransposeSpec, machine: Machine) -> Tiling:
    """Choose a tiling from registers and exact division, without measuring."""
    dots = dot_products(machine.target, exact=True, plain=True)
    per_group = spec.outputs // spec.groups
    usable = [d for d in dots if d.tensorized and (spec.groups == 1 or per_group % d.lanes == 0)]
    generic = dots[-1]
    if spec.groups > 1:
        generic = narrowed(generic, math.gcd(per_group, generic.lanes))
    dot = min(usable or [generic], key=lambda d: round_up(spec.outputs, d.lanes))
    vectors = -(-spec.outputs // dot.lanes)
    channel_tile = (
        2 if vectors % 2 == 0 and (spec.groups == 1 or per_group % (2 * dot.lanes) == 0) else 1
    )
    steps = -(-spec.out_size[1] // spec.strides[1])
    divides = spec.outputs % dot.lanes == 0 and all(
        extent % stride == 0 for extent, stride in zip(spec.out_size, spec.strides, strict=True)
    )
    most = max(1, accumulators(dot) // (channel_tile * spec.strides[1]))
    widths = range(1, min(steps, most) + 1)
    exact = max(t for t in widths if steps % t == 0)
    column_tile = exact if 2 * exact >= widths[-1] else widths[-1]
    fused = divides and steps % column_tile == 0
    pixels = spec.batch * spec.height * spec.width
    macs = pixels * math.prod(spec.kernel) * per_group * spec.channels
    parallel = machine.threads > 1 and macs >= 4 * PARALLEL_BYTES
    return Tiling(dot, column_tile, channel_tile, fused, parallel)


def kernel(spec: Conv2DTransposeSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the scheduled kernel of a layer."""
    sch = Schedule(compute(spec, tiling))
    schedule(sch, spec, tiling)
    name = f"conv2d_transpose_nhwc_u8s8s32_{tiling.dot.name}"
    return with_facts(overlap_tails(sch.mod["main"]), name, "conv2d_transpose")
