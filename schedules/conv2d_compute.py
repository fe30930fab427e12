"""What a convolution computes: blocks of loops over padded extents, unscheduled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tvm import te, tirx

from tvmquant.schedules.conv2d_binary import (
    bias_shape,
    border,
    counted,
    counted_words,
    padding_bits,
    subtracted,
    table_placeholder,
)
from tvmquant.schedules.conv2d_packing import BIAS, scale_shape, weight_shape
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.epilogue import apply_at, placeholders
from tvmquant.schedules.loops import round_up

# Elements copied together into the padded rows.
COPIED = 32


def input_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, ...]:
    """Return the shape in which the kernel takes its input: NHWC, or (N, H, W * C) if it copies.

    Of a binary one C counts elements of bits, and planes come first (`schedules.pack_bits`).
    """
    elements = spec.channels // tiling.dot.values
    images = (*((spec.input_planes,) if spec.binary else ()), spec.batch, spec.height)
    if Extents.of(spec, tiling).direct:
        return (*images, spec.width, elements)
    return (*images, spec.width * elements)


def output_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, int, int, int]:
    """Return the shape in which the kernel gives its output and takes a residual: NHWC, or flat."""
    return (spec.batch, *spec.out_extents(flat=tiling.flat), spec.outputs)


def padded_outputs(spec: Conv2DSpec, tiling: Tiling) -> int:
    """Return the length of the per-channel vectors the kernel takes (zeros beyond the channels)."""
    return Extents.of(spec, tiling).outputs


def compute(spec: Conv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Define the layer on padded extents.

    Blocks: ``rows`` (unless direct), ``patches`` (of joined rows), ``unpacked`` (4-bit weights,
    unless in registers), ``part`` (chains), ``acc``, ``collected`` (of partial sums and
    matrices), ``counts`` (of several planes of bits) and ``out``.

    Arguments of the function: x, weight (packed), with ``w_group`` the groups' factors (packed),
    where counts are looked up their table, bias, the epilogue's vectors (each of `padded_outputs`
    entries), residual, residual multiplier, table, and last the output.
    """
    e, dot = Extents.of(spec, tiling), tiling.dot
    dtype = dot.input_dtype if spec.binary else spec.dtype
    x = te.placeholder(input_shape(spec, tiling), dtype, name="x")
    stored = "uint8" if spec.w_bits == 4 else dot.weight_dtype
    weight = te.placeholder(weight_shape(spec, tiling), stored, name="weight")
    scale = None
    if spec.w_group:
        scale = te.placeholder(scale_shape(spec, tiling), "uint8", name="scale")
    table = table_placeholder() if dot.looks_up else None
    if spec.binary:
        bias = te.placeholder(bias_shape(spec, tiling), "int32", name="bias")
    else:
        bias = te.placeholder((e.outputs,), dot.accumulator_dtype, name="bias")
    out_shape = output_shape(spec, tiling)
    extra = placeholders(spec.epilogue, e.outputs, out_shape, spec.residual_dtype)
    operands = _Operands(
        _input_reader(x, spec, tiling), _weight_reader(weight, scale, spec, tiling)
    )
    if table is not None:
        acc = counted(operands.input, weight, table, spec, tiling)
    elif spec.binary:
        acc = counted_words(operands.input, weight, spec, tiling)
    elif e.chained:
        acc = _chained(operands, scale, spec, tiling)
    else:
        acc = _summed(operands, spec, tiling)

    if dot.partial > 1:
        acc = _collected(acc)
    elif dot.rows > 1:
        sums = acc
        acc = te.compute(sums.shape, lambda *at: sums[at], name="collected")
    counts = subtracted(acc, spec) if spec.binary else None

    def finish(n: Any, h: Any, w: Any, o: Any) -> Any:
        if counts is not None:
            total = bias[(*border(spec, tiling, h, w), o)] - counts(n, h, w, o)
        else:
            total = acc[n, h, w, o] + bias[o]
        return apply_at(spec.epilogue, total, extra, (n, h, w, o), narrows=dot.narrows)

    out = te.compute(out_shape, finish, name="out")
    packed = [weight, *(tensor for tensor in (scale, table) if tensor is not None)]
    return te.create_prim_func([x, *packed, bias, *extra, out])


class _Operands(NamedTuple):
    """What the dot products multiply.

    Attributes
    ----------
    input : function of (n, h, w, o, ry, rt, k)
        Element k of the run that output (h, w, o) reads with its window's row ry and tap rt; of
        bits, of the plane that is given last.
    weight : function of (o, ry, rt, step, half, j)
        Element j of a step; with nibbles in registers of the byte ``step``, by half.
    """

    input: Callable[..., Any]
    weight: Callable[..., Any]


def _input_reader(x: te.Tensor, spec: Conv2DSpec, tiling: Tiling) -> Callable[..., Any]:
    e = Extents.of(spec, tiling)
    rows = None if e.direct else _padded_rows(x, spec, e, tiling)
    if rows is not None and spec.joined and tiling.dot.rows == 1:
        patches = _patches(rows, spec, tiling)
        return lambda n, h, w, _o, _ry, _rt, k: patches[n, h, w, k]
    group_outputs, group_pixels = spec.outputs // spec.groups, e.pixel // spec.groups

    def value(n: Any, h: Any, w: Any, o: Any, ry: Any, rt: Any, k: Any, *plane: Any) -> Any:
        if tiling.flat:
            h, w = w // spec.out_width, w % spec.out_width
        row, column = h * spec.strides[0], w * spec.strides[1]
        first = (o // group_outputs) * group_pixels if spec.groups > 1 else 0
        if rows is None:
            return x[(*plane, n, row, column, first + k)]
        column = (column + rt * spec.dilation[1]) * e.pixel
        if spec.joined:
            return rows[n, row + k // spec.row, column + k % spec.row]
        return rows[(*plane, n, row + ry * spec.dilation[0], column + first + k)]

    if tiling.dot.rows == 1:
        return value

    def copied(n: Any, h: Any, w: Any, window: Any, k: Any) -> Any:
        return value(n, h, w, 0, window // e.taps, window % e.taps, k)

    shape = (spec.batch, e.rows, e.columns, spec.run_rows * e.taps, e.run)
    patches = te.compute(shape, copied, name="patches")
    return lambda n, h, w, _o, ry, rt, k: patches[n, h, w, ry * e.taps + rt, k]


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
        # a group holds an even number of pieces
        group = byte * (2 * dot.piece) // spec.w_group
        return value * scale[ob, ry, group, lane].astype(dot.weight_dtype)

    blocks, *window, pairs, lanes, piece = weight_shape(spec, tiling)
    unpacked = te.compute((blocks, *window, pairs, 2, lanes, piece), unpack, name="unpacked")

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
        axes, at, k = [rk], (rk // dot.piece, 0, rk % dot.piece), rk

    if dot.partial > 1:
        return _partially_summed(operands, spec, tiling, [ry, rt])

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


def _partially_summed(
    operands: _Operands, spec: Conv2DSpec, tiling: Tiling, window: list[Any]
) -> te.Tensor:
    """Define the partial sums of the accumulators (`DotProduct.partial`)."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    both, (ry, rt) = 2 * dot.partial, window
    step = te.reduce_axis((0, e.steps), "step")
    time, j = te.reduce_axis((0, dot.group // both), "time"), te.reduce_axis((0, 2), "j")

    def product(n: Any, h: Any, w: Any, o: Any, p: Any) -> Any:
        at = time * both + p * 2 + j
        value, factor = (
            operand.astype(dot.accumulator_dtype)
            for operand in (
                operands.input(n, h, w, o, ry, rt, step * dot.group + at),
                operands.weight(o, ry, rt, step, 0, at),
            )
        )
        return te.sum(value * factor, axis=[ry, rt, step, time, j])

    shape = (spec.batch, e.rows, e.columns, e.outputs, dot.partial)
    return te.compute(shape, product, name="acc")


def _collected(partial: te.Tensor) -> te.Tensor:
    """Define the accumulators of partial sums."""
    *shape, count = partial.shape
    p = te.reduce_axis((0, count), "p")
    return te.compute(shape, lambda *at: te.sum(partial[(*at, p)], axis=p), name="collected")


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
    group_channels = spec.channels // spec.groups // dot.values
    planes = (spec.input_planes,) if spec.binary else ()

    def value(*at: Any) -> Any:
        *plane, n, h, j = at
        row = h - top
        if plane:
            zero = padding_bits(spec, dot, *plane)
        else:
            zero = tirx.const(spec.input_zero_point - dot.input_offset, dot.input_dtype)
        if per_group == group_channels:
            source = j - left * e.pixel
            inside = [source >= 0, source < spec.width * e.pixel]
        else:
            column, channel = j // e.pixel - left, j % e.pixel
            inside = [column >= 0, column < spec.width, channel % per_group < group_channels]
            channel = channel // per_group * group_channels + channel % per_group
            source = column * spec.channels + channel
        read = x[(*plane, n, row, source)]
        if dot.input_offset:  # a byte's top bit is what is taken from it
            read = tirx.reinterpret(dot.input_dtype, read ^ tirx.const(dot.input_offset, "uint8"))
        read = read.astype(dot.input_dtype)
        run = te.if_then_else(tirx.all(*inside), read, zero)
        return te.if_then_else(tirx.all(row >= 0, row < spec.height), run, zero)

    width = round_up(columns * e.pixel, COPIED)
    return te.compute((*planes, spec.batch, height, width), value, name="rows")


def _patches(rows: te.Tensor, spec: Conv2DSpec, tiling: Tiling) -> te.Tensor:
    """Define the window of every output pixel as one run, its rows one after the other."""
    e = Extents.of(spec, tiling)

    def value(n: Any, h: Any, w: Any, k: Any) -> Any:
        if tiling.flat:
            h, w = w // spec.out_width, w % spec.out_width
        row, column = h * spec.strides[0], w * (spec.strides[1] * spec.channels)
        return rows[n, row + k // spec.row, column + k % spec.row]

    return te.compute((spec.batch, e.rows, e.columns, e.run), value, name="patches")
