"""Between floats and integers by a range that `dynamic_range` found: equations (1) and (5).

Strategy of quantize

1. Without a frame and without a change of layout, tensors are seen as one-dimensional.
2. Else rows of the output run in parallel. Each is filled with zero points at its ends, or whole
   where it lies above or below the image.
3. What lies between is one vector after the other: in NHWC over pixels and channels, which lie side
   by side; of images, from NCHW, one of each channel, stored interleaved.

Strategy of dequantize: rows run in parallel, channels are vectorized.

Rejected: a convolution that pads with 0 and takes off the sums of those of its weights that lie
inside of the image. They differ by position, which is a tensor more to read for each result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules.border import IMAGE_CHANNELS
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import (
    PARALLEL_BYTES,
    broadcast_at,
    flat_loop,
    flat_view,
    overlap_tails,
    overlapping_lanes,
    parallel_chunks,
    product,
    vectorize,
)
from tvmquant.schedules.rounding import of_lanes, quantized, spread

QMAX = 255.0


@dataclass(frozen=True)
class QuantizeSpec:
    """float32 to uint8; the arguments are ``(x, range, q)``.

    Parameters
    ----------
    shape : tuple of int
        Of the float input.
    padding : (top, left, bottom, right)
        Zero points around the image, of a tensor of rank 4.
    to_nhwc : bool
        The input is NCHW, the output NHWC; else both are NHWC, or of any other rank.
    """

    shape: tuple[int, ...]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    to_nhwc: bool = False


@dataclass(frozen=True)
class DequantizeSpec:
    """Sums to float32; the arguments are ``(sums, range, weight_sums, scale, bias, ..., y)``.

    Parameters
    ----------
    shape : tuple of int
        Of sums and result, channels last.
    dtype : str
        ``"int32"``, or ``"uint8"``.
    parameters : tuple of tuple of int
        Shapes of ``weight_sums``, ``scale`` and ``bias``, which broadcast; behind these come those
        of ``window_sums`` and ``weight_zero_point``, or nothing.
    low, high : float
        Bounds of the clip; infinite where there is none.
    """

    shape: tuple[int, ...]
    dtype: str
    parameters: tuple[tuple[int, ...], ...]
    low: float = -math.inf
    high: float = math.inf


def quantize_kernel(spec: QuantizeSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    x = te.placeholder(spec.shape, "float32", name="x")
    found = te.placeholder((2,), "float32", name="range")
    widest = 2 * vector_bits(machine.target) // 32
    parallel = machine.threads > 1 and 4 * product(spec.shape) >= PARALLEL_BYTES
    rows = any(spec.padding) or spec.to_nhwc

    def body(sources: list[Any], destinations: list[Any]) -> tirx.Stmt:
        (flat, view), (out, out_view) = map(flat_view, (sources[0], destinations[0]))
        rounding = _Rounding(sources[1])
        if rows:
            work = _Rows(spec, widest, flat, out, rounding).loop(parallel)
        else:
            lanes = overlapping_lanes(product(spec.shape), widest)
            work = flat_loop(out, lanes, lambda i: rounding(flat[i]), parallel=parallel)
        return tirx.SeqStmt([view, out_view, *rounding.statements, work])

    out = te.extern(_output_shape(spec), [x, found], body, name="out", dtype="uint8")
    func = te.create_prim_func([x, found, out])
    name = "dynamic_quantize_f32_uint8"
    return with_facts(
        func, name + "_nhwc" * spec.to_nhwc, "dynamic_quantize", channels_last=spec.to_nhwc
    )


class _Rounding:
    """Equation (1) with the numbers of a range; its statements come before what uses it."""

    def __init__(self, found: Any) -> None:
        self.scale, zero = tirx.Var("scale", "float32"), tirx.Var("zero", "float32")
        self.zero_point = tirx.Var("zero_point", "int32")
        self.low, self.high = tirx.const(0.0, "float32") - zero, tirx.const(QMAX, "float32") - zero
        self.statements = [
            tirx.Bind(self.scale, found[0]),
            tirx.Bind(zero, found[1]),
            tirx.Bind(self.zero_point, zero.astype("int32")),
        ]

    def __call__(self, x: tirx.PrimExpr, lanes: int = 1) -> tirx.PrimExpr:
        scale, low, high, zero_point = (
            spread(number, lanes) for number in (self.scale, self.low, self.high, self.zero_point)
        )
        return quantized(x, scale, low, high, zero_point, "uint8")


class _Rows:
    """Emits the loops over the rows of a padded image."""

    def __init__(
        self, spec: QuantizeSpec, widest: int, flat: Any, out: Any, rounding: _Rounding
    ) -> None:
        self.spec = spec
        self.widest = widest
        self.flat = flat
        self.out = out
        self.rounding = rounding
        self.rows, self.columns, self.channels = _output_shape(spec)[1:]
        top, self.left, bottom, self.right = spec.padding
        self.top = top
        self.height = self.rows - top - bottom
        self.width = self.columns - self.left - self.right

    def loop(self, parallel: bool) -> tirx.Stmt:
        row = tirx.Var("row", "int32")
        image, y = row // self.rows, row % self.rows - self.top
        first = row * (self.columns * self.channels)
        inside = tirx.SeqStmt(
            [
                self._fill(first, self.left),
                self._values(image, y, first + self.left * self.channels),
                self._fill(first + (self.left + self.width) * self.channels, self.right),
            ]
        )
        work: tirx.Stmt = inside
        if self.height < self.rows:
            within = tirx.all(y >= 0, y < self.height)
            work = tirx.IfThenElse(within, inside, self._fill(first, self.columns))
        kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
        return tirx.For(row, 0, self.spec.shape[0] * self.rows, kind, work)

    def _fill(self, first: Any, pixels: int) -> tirx.Stmt:
        index = tirx.Var("index", "int32")
        value = self.rounding.zero_point.astype("uint8")
        store = tirx.BufferStore(self.out, value, [first + index])
        return tirx.For(index, 0, pixels * self.channels, tirx.ForKind.SERIAL, store)

    def _values(self, image: Any, y: Any, first: Any) -> tirx.Stmt:
        if not self.spec.to_nhwc:
            begin = (image * self.height + y) * (self.width * self.channels)
            return self._steps(
                self.width * self.channels,
                lambda start, lanes: self.out.vstore(
                    [first + start], self._rounded(begin + start, lanes)
                ),
            )
        if self.channels <= IMAGE_CHANNELS:
            return self._steps(
                self.width, lambda s, lanes: self._interleave(image, y, first, s, lanes)
            )
        return self._gather(image, y, first)

    def _steps(self, extent: int, store: Any) -> tirx.Stmt:
        """Return the loop over vectors, the last of which overlaps the one before it."""
        lanes, step = overlapping_lanes(extent, self.widest), tirx.Var("step", "int32")
        start = step * lanes
        if extent % lanes:
            start = tirx.min(start, extent - lanes)
        return tirx.For(step, 0, -(-extent // lanes), tirx.ForKind.SERIAL, store(start, lanes))

    def _rounded(self, begin: Any, lanes: int) -> tirx.PrimExpr:
        return self.rounding(self.flat.vload([begin], of_lanes("float32", lanes)), lanes)

    def _row_of_plane(self, image: Any, channel: Any, y: Any) -> Any:
        return ((image * self.channels + channel) * self.height + y) * self.width

    def _interleave(self, image: Any, y: Any, first: Any, start: Any, lanes: int) -> tirx.Stmt:
        planes = [
            self._rounded(self._row_of_plane(image, c, y) + start, lanes)
            for c in range(self.channels)
        ]
        order = [c * lanes + i for i in range(lanes) for c in range(self.channels)]
        pixels = tirx.Shuffle(planes, order) if len(order) > 1 else planes[0]
        return self.out.vstore([first + start * self.channels], pixels)

    def _gather(self, image: Any, y: Any, first: Any) -> tirx.Stmt:
        """Return the loops that read the channels of each pixel, a plane apart."""
        column, channel = tirx.Var("column", "int32"), tirx.Var("channel", "int32")
        value = self.rounding(self.flat[self._row_of_plane(image, channel, y) + column])
        store = tirx.BufferStore(self.out, value, [first + column * self.channels + channel])
        inner = tirx.For(channel, 0, self.channels, tirx.ForKind.SERIAL, store)
        return tirx.For(column, 0, self.width, tirx.ForKind.SERIAL, inner)


def dequantize(spec: DequantizeSpec) -> tirx.PrimFunc:
    """Return the computation of equation (5), each operation of float32 rounded by itself."""
    sums = te.placeholder(spec.shape, spec.dtype, name="sums")
    found = te.placeholder((2,), "float32", name="range")
    names = ("weight_sums", "scale", "bias", "window_sums", "weight_zero_point")
    types = ("int32", "float32", "float32", "int32", "int32")
    parameters = [
        te.placeholder(shape, dtype, name=name)
        for shape, dtype, name in zip(spec.parameters, types, names, strict=False)
    ]

    def element(*index: Any) -> tirx.PrimExpr:
        weight_sums, scale, bias, *of_windows = (broadcast_at(p, index) for p in parameters)
        total = sums(*index).astype("int32") - found[1].astype("int32") * weight_sums
        if of_windows:
            total = total - of_windows[0] * of_windows[1]
        real = _unfused(total.astype("float32") * (found[0] * scale)) + bias
        if spec.low > -math.inf:
            real = tirx.max(real, tirx.const(spec.low, "float32"))
        if spec.high < math.inf:
            real = tirx.min(real, tirx.const(spec.high, "float32"))
        return real

    out = te.compute(spec.shape, element, name="y")
    return te.create_prim_func([sums, found, *parameters, out])


def _unfused(product_: tirx.PrimExpr) -> tirx.PrimExpr:
    """Keep LLVM from contracting a product and what is added to it into one rounding."""
    return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", product_)


def dequantize_kernel(spec: DequantizeSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    sch = Schedule(dequantize(spec))
    loops = sch.get_loops(sch.get_sblock("y"))
    widest = 2 * vector_bits(machine.target) // 32
    vectorize(sch, loops[-1], overlapping_lanes(spec.shape[-1], widest))
    if len(loops) > 1:
        parallel_chunks(sch, sch.fuse(*loops[:-1]), machine.threads, 4 * product(spec.shape))
    func = overlap_tails(sch.mod["main"])
    return with_facts(func, f"dynamic_dequantize_{spec.dtype}_f32", "dynamic_dequantize")


def _output_shape(spec: QuantizeSpec) -> tuple[int, ...]:
    if not any(spec.padding) and not spec.to_nhwc:
        return spec.shape
    n, *rest = spec.shape
    height, width, channels = (*rest[1:], rest[0]) if spec.to_nhwc else rest
    top, left, bottom, right = spec.padding
    return n, height + top + bottom, width + left + right, channels
