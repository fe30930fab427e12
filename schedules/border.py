"""Float borders of the integer graph: quantize (1) and dequantize (2) of `tvmquant.arithmetic`.

Either may change the layout on the way: float tensors lie as the user has them (NCHW), integer
tensors as the kernels want them (NHWC), and a separate transposition would read and write
everything once more.

Strategy: iterate in the order of the output; rows run in parallel, the innermost dimension is
vectorised. With a transposition of few channels (images) the innermost two dimensions, width and
channel, are exchanged instead: reads are contiguous. Where vectors divide the width, a step
quantizes one vector of every channel and stores them interleaved, else LLVM stores
element by element (2.2 times as long for an image of 224x224).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.schedules.border_intrinsics import interleave
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.loops import lanes_for, parallel_chunks, product, vectorize

IMAGE_CHANNELS = 4
# 1.5 * 2**23: a float32 sum with it within +-2**22 has no fraction bits
ROUNDING = 12582912.0
ROUNDING_BITS = 0x4B400000


@dataclass(frozen=True)
class QuantizeSpec:
    """float32 to integers, equation (1).

    Parameters
    ----------
    shape : tuple of int
        Shape of the float input.
    scale : float
    zero_point, qmin, qmax : int
    out_dtype : str
    to_nhwc : bool
        The input is NCHW, the output NHWC; else both have the same layout.
    """

    shape: tuple[int, ...]
    scale: float
    zero_point: int
    qmin: int
    qmax: int
    out_dtype: str = "uint8"
    to_nhwc: bool = False


@dataclass(frozen=True)
class DequantizeSpec:
    """Integers to float32, equation (2).

    Parameters
    ----------
    shape : tuple of int
        Shape of the integer input.
    dtype : str
        ``"uint8"``, ``"int16"`` or ``"int32"``.
    zero_point : int
    channels : int
        Length of the scale: 1, or the extent of the input's last dimension.
    to_nchw : bool
        The input is NHWC, the output NCHW; else both have the same layout.
    """

    shape: tuple[int, ...]
    dtype: str
    zero_point: int
    channels: int = 1
    to_nchw: bool = False


@dataclass(frozen=True)
class Tiling:
    """How the loops of the output are run.

    Parameters
    ----------
    lanes : int
        Elements per vector step.
    exchange : bool
        Exchange the innermost two loops, so that the vector runs along the second-last dimension.
    threads : int
    interleave : bool
        Store the vectors of all channels at once; only with `exchange`, and with lanes that divide
        the width.
    """

    lanes: int
    exchange: bool
    threads: int
    interleave: bool = False


def default_tiling(
    spec: QuantizeSpec | DequantizeSpec, target: tvm.target.Target, threads: int
) -> Tiling:
    """Return a tiling with two float vectors per step: two divisions in flight."""
    widest = 2 * vector_bits(target) // 32
    shape = _output_shape(spec)
    exchange = getattr(spec, "to_nhwc", False) and shape[-1] <= IMAGE_CHANNELS
    if exchange:
        lanes = lanes_for(shape[-2], widest)
        interleave = lanes > 1 and shape[-2] % lanes == 0 and shape[-1] > 1
        return Tiling(lanes, True, threads, interleave)
    extent = shape[-1] if _moves(spec) or getattr(spec, "channels", 1) > 1 else product(shape)
    return Tiling(lanes_for(extent, widest), False, threads)


def quantize(spec: QuantizeSpec, *, planes: bool = False) -> tirx.PrimFunc:
    """Return the computation of equation (1): ``(x, q)``; with planes, first in the input's layout.

    Notes
    -----
    The clip comes before the rounding, which changes nothing since its bounds are integers. The sum
    with 1.5 * 2**23, whose last bit is worth 1, then rounds ties to even, and its low bits are the
    integer: no rounding instruction is needed, and for lack of products there is nothing that could
    contract into a fused multiply-add. NaN becomes qmin: it fails the first comparison.
    """
    x = te.placeholder(spec.shape, "float32", name="x")
    low = tirx.const(float(spec.qmin - spec.zero_point), "float32")
    high = tirx.const(float(spec.qmax - spec.zero_point), "float32")

    def channel_first(index: Any) -> Any:
        return (index[0], index[3], index[1], index[2]) if spec.to_nhwc else index

    def integer(*source: Any) -> tirx.PrimExpr:
        steps = x(*source) / tirx.const(spec.scale, "float32")
        above = tirx.Select(steps > low, steps, low)
        clipped = tirx.Select(above < high, above, high)
        bits = tirx.reinterpret("int32", clipped + tirx.const(ROUNDING, "float32"))
        return (bits - (ROUNDING_BITS - spec.zero_point)).astype(spec.out_dtype)

    read = te.compute(spec.shape, integer, name="planes") if planes else integer

    def element(*index: Any) -> tirx.PrimExpr:
        return read(*channel_first(index))

    return te.create_prim_func([x, te.compute(_output_shape(spec), element, name="q")])


def dequantize(spec: DequantizeSpec) -> tirx.PrimFunc:
    """Return the computation of equation (2): ``(q, scale, x)`` with a float32 scale vector."""
    q = te.placeholder(spec.shape, spec.dtype, name="q")
    scale = te.placeholder((spec.channels,), "float32", name="scale")

    def element(*index: Any) -> tirx.PrimExpr:
        source = (index[0], index[2], index[3], index[1]) if spec.to_nchw else index
        steps = (q(*source).astype("int32") - spec.zero_point).astype("float32")
        return steps * scale[source[-1] if spec.channels > 1 else 0]

    return te.create_prim_func([q, scale, te.compute(_output_shape(spec), element, name="x")])


def schedule(sch: Schedule, spec: QuantizeSpec | DequantizeSpec, tiling: Tiling) -> None:
    """Schedule either computation.

    1. Flatten what is contiguous in input and output alike; 2. bring the vector dimension inside;
    3. vectorise it; 4. run what is left in parallel.
    """
    block = sch.get_sblock("q" if isinstance(spec, QuantizeSpec) else "x")
    loops = list(sch.get_loops(block))
    work = 4 * product(spec.shape)
    if isinstance(spec, QuantizeSpec) and tiling.interleave:
        step, pixel = sch.split(loops[2], [None, tiling.lanes])
        planes = sch.get_sblock("planes")
        sch.compute_at(planes, step)
        *_, channel, column = sch.get_loops(planes)
        sch.unroll(channel)
        sch.vectorize(column)
        sch.tensorize(pixel, interleave(spec.shape[1], tiling.lanes, spec.out_dtype))
        parallel_chunks(sch, sch.fuse(*loops[:2]), tiling.threads, work)
        return
    if tiling.exchange:
        sch.reorder(loops[-1], loops[-2])
        loops[-2:] = [loops[-1], loops[-2]]
        sch.unroll(loops[-2])
        vectorize(sch, loops[-1], tiling.lanes)
        parallel_chunks(sch, sch.fuse(*loops[:-2]), tiling.threads, work)
        return
    if not _moves(spec) and getattr(spec, "channels", 1) == 1:
        steps = vectorize(sch, sch.fuse(*loops), tiling.lanes)
        parallel_chunks(sch, steps, tiling.threads, work)
        return
    vectorize(sch, loops[-1], tiling.lanes)
    if len(loops) > 1:
        parallel_chunks(sch, sch.fuse(*loops[:-1]), tiling.threads, work)


def kernel(
    spec: QuantizeSpec | DequantizeSpec, target: tvm.target.Target, threads: int
) -> tirx.PrimFunc:
    """Return the scheduled kernel for ``threads`` threads."""
    tiling = default_tiling(spec, target, threads)
    if isinstance(spec, QuantizeSpec):
        func, name = quantize(spec, planes=tiling.interleave), f"quantize_f32_{spec.out_dtype}"
    else:
        func, name = dequantize(spec), f"dequantize_{spec.dtype}_f32"
    sch = Schedule(func)
    schedule(sch, spec, tiling)
    return sch.mod["main"].with_attr("tvmquant.kernel", name + ("_nhwc" if _moves(spec) else ""))


def _moves(spec: QuantizeSpec | DequantizeSpec) -> bool:
    return spec.to_nhwc if isinstance(spec, QuantizeSpec) else spec.to_nchw


def _output_shape(spec: QuantizeSpec | DequantizeSpec) -> tuple[int, ...]:
    if not _moves(spec):
        return spec.shape
    n, a, b, c = spec.shape
    return (n, b, c, a) if isinstance(spec, QuantizeSpec) else (n, c, a, b)
