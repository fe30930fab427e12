"""Float borders of the integer graph: quantize (1) and dequantize (2) of `tvmquant.arithmetic`.

Either may change the layout on the way: float tensors lie as the user has them (NCHW), integer
tensors as the kernels want them (NHWC), and a separate transposition would read and write
everything once more.

Strategy: without a transposition, and with one scale, tensors are seen as one-dimensional. Else
iterate in the order of the output; rows run in parallel, the innermost dimension is vectorised.
With a transposition of few channels (images) a step quantizes one vector of every channel and
stores them interleaved: LLVM would store element by element (2.2 times as long for an image of
224x224).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
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
from tvmquant.schedules.rounding import quantized, spread

IMAGE_CHANNELS = 4


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
    scale_shape : tuple of int
        Shape of the scale: (1,), or of the output's rank, broadcast.
    to_nchw : bool
        The input is NHWC, the output NCHW; else both have the same layout.
    """

    shape: tuple[int, ...]
    dtype: str
    zero_point: int
    scale_shape: tuple[int, ...] = (1,)
    to_nchw: bool = False


@dataclass(frozen=True)
class Tiling:
    """How the loops of the output are run.

    Parameters
    ----------
    lanes : int
        Elements per vector step.
    order : str
        ``"flat"``: the tensors are one-dimensional. ``"interleaved"``: a vector runs along the
        width, one of every channel in each step. ``"output"``: that of the output.
    threads : int
    """

    lanes: int
    order: str
    threads: int


def default_tiling(spec: QuantizeSpec | DequantizeSpec, machine: Machine) -> Tiling:
    """Return a tiling with two float vectors per step: two divisions in flight."""
    widest = 2 * vector_bits(machine.target) // 32
    shape = _output_shape(spec)
    if _stays(spec) and product(getattr(spec, "scale_shape", (1,))) == 1:
        return Tiling(overlapping_lanes(product(shape), widest), "flat", machine.threads)
    image = isinstance(spec, QuantizeSpec) and shape[-1] <= IMAGE_CHANNELS
    if image and shape[-1] > 1 and shape[-2] > 1:
        return Tiling(overlapping_lanes(shape[-2], widest), "interleaved", machine.threads)
    return Tiling(overlapping_lanes(shape[-1], widest), "output", machine.threads)


def quantize(spec: QuantizeSpec) -> tirx.PrimFunc:
    """Return the computation of equation (1): ``(x, q)``."""
    x = te.placeholder(spec.shape, "float32", name="x")

    def element(*index: Any) -> tirx.PrimExpr:
        source = (index[0], index[3], index[1], index[2]) if spec.to_nhwc else index
        return _quantized(spec, x(*source))

    return te.create_prim_func([x, te.compute(_output_shape(spec), element, name="q")])


def _quantized(spec: QuantizeSpec, x: tirx.PrimExpr, lanes: int = 1) -> tirx.PrimExpr:
    """Return the integers of one value or vector."""
    scale, low, high = (
        spread(tirx.const(value, "float32"), lanes)
        for value in (
            spec.scale, float(spec.qmin - spec.zero_point), float(spec.qmax - spec.zero_point),
        )
    )  # fmt: skip
    zero_point = spread(tirx.const(spec.zero_point, "int32"), lanes)
    return quantized(x, scale, low, high, zero_point, spec.out_dtype)


def dequantize(spec: DequantizeSpec) -> tirx.PrimFunc:
    """Return the computation of equation (2): ``(q, scale, x)`` with float32 scales."""
    q = te.placeholder(spec.shape, spec.dtype, name="q")
    scale = te.placeholder(spec.scale_shape, "float32", name="scale")

    def element(*index: Any) -> tirx.PrimExpr:
        source = (index[0], index[2], index[3], index[1]) if spec.to_nchw else index
        return _dequantized(spec, q(*source), broadcast_at(scale, index))

    return te.create_prim_func([q, scale, te.compute(_output_shape(spec), element, name="x")])


def _dequantized(spec: DequantizeSpec, q: tirx.PrimExpr, scale: tirx.PrimExpr) -> tirx.PrimExpr:
    return (q.astype("int32") - spec.zero_point).astype("float32") * scale


def schedule(sch: Schedule, spec: QuantizeSpec | DequantizeSpec, tiling: Tiling) -> None:
    """Schedule either computation in the order of its output."""
    loops = sch.get_loops(sch.get_sblock("q" if isinstance(spec, QuantizeSpec) else "x"))
    vectorize(sch, loops[-1], tiling.lanes)
    if len(loops) > 1:
        parallel_chunks(sch, sch.fuse(*loops[:-1]), tiling.threads, 4 * product(spec.shape))


def flattened(spec: QuantizeSpec | DequantizeSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the kernel that sees both tensors as one-dimensional."""
    if isinstance(spec, QuantizeSpec):
        inputs, out_dtype = [te.placeholder(spec.shape, "float32", name="x")], spec.out_dtype
    else:
        q = te.placeholder(spec.shape, spec.dtype, name="q")
        inputs, out_dtype = [q, te.placeholder((1,), "float32", name="scale")], "float32"

    def body(sources: list[Any], destinations: list[Any]) -> tirx.Stmt:
        (source, view), (out, view_out) = map(flat_view, (sources[0], destinations[0]))

        def element(index: Any) -> tirx.PrimExpr:
            if isinstance(spec, QuantizeSpec):
                return _quantized(spec, source[index])
            return _dequantized(spec, source[index], sources[1][0])

        parallel = _pays(spec, tiling)
        return tirx.SeqStmt(
            [view, view_out, flat_loop(out, tiling.lanes, element, parallel=parallel)]
        )

    out = te.extern(_output_shape(spec), inputs, body, name="out", dtype=out_dtype)
    return te.create_prim_func([*inputs, out])


def interleaved(spec: QuantizeSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the kernel that stores the vectors of all channels at once, from NCHW to NHWC."""
    batch, channels, height, width = spec.shape
    lanes, dtype = tiling.lanes, spec.out_dtype
    order = [c * lanes + i for i in range(lanes) for c in range(channels)]
    x = te.placeholder(spec.shape, "float32", name="x")

    def body(sources: list[Any], destinations: list[Any]) -> tirx.Stmt:
        out, view = flat_view(destinations[0])
        row, step = tirx.Var("row", "int32"), tirx.Var("step", "int32")
        # the last step overlaps the one before it
        start = tirx.min(step * lanes, width - lanes) if width % lanes else step * lanes
        planes = [
            sources[0].vload([row // height, c, row % height, start], f"float32x{lanes}")
            for c in range(channels)
        ]
        pixels = tirx.Shuffle([_quantized(spec, plane, lanes) for plane in planes], order)
        store = out.vstore([(row * width + start) * channels], pixels)
        steps = tirx.For(step, 0, -(-width // lanes), tirx.ForKind.SERIAL, store)
        kind = tirx.ForKind.PARALLEL if _pays(spec, tiling) else tirx.ForKind.SERIAL
        return tirx.SeqStmt([view, tirx.For(row, 0, batch * height, kind, steps)])

    out = te.extern(_output_shape(spec), [x], body, name="out", dtype=dtype)
    return te.create_prim_func([x, out])


def kernel(spec: QuantizeSpec | DequantizeSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    tiling = default_tiling(spec, machine)
    if isinstance(spec, QuantizeSpec):
        name = f"quantize_f32_{spec.out_dtype}"
    else:
        name = f"dequantize_{spec.dtype}_f32"
    if tiling.order == "flat":
        func = flattened(spec, tiling)
    elif isinstance(spec, QuantizeSpec) and tiling.order == "interleaved":
        func = interleaved(spec, tiling)
    else:
        sch = Schedule(quantize(spec) if isinstance(spec, QuantizeSpec) else dequantize(spec))
        schedule(sch, spec, tiling)
        func = overlap_tails(sch.mod["main"])
    moves = _moves(spec)
    operation = "quantize" if isinstance(spec, QuantizeSpec) else "dequantize"
    return with_facts(func, name + "_nhwc" * moves, operation, channels_last=moves)


def _pays(spec: QuantizeSpec | DequantizeSpec, tiling: Tiling) -> bool:
    """Whether the work of all iterations pays for waking the threads."""
    return tiling.threads > 1 and 4 * product(spec.shape) >= PARALLEL_BYTES


def _moves(spec: QuantizeSpec | DequantizeSpec) -> bool:
    return spec.to_nhwc if isinstance(spec, QuantizeSpec) else spec.to_nchw


def _stays(spec: QuantizeSpec | DequantizeSpec) -> bool:
    """Whether elements lie in the same order in input and output."""
    if not _moves(spec):
        return True
    moved = spec.shape[1] if isinstance(spec, QuantizeSpec) else spec.shape[3]
    return moved == 1 or spec.shape[0] * moved == product(spec.shape)


def _output_shape(spec: QuantizeSpec | DequantizeSpec) -> tuple[int, ...]:
    if not _moves(spec):
        return spec.shape
    n, a, b, c = spec.shape
    return (n, b, c, a) if isinstance(spec, QuantizeSpec) else (n, c, a, b)
