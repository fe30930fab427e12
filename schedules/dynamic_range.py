"""The range of a float32 tensor, as scale and zero point: equation (4) of `tvmquant.arithmetic`.

Strategy

1. Seen as one-dimensional, the tensor is cut into chunks, which run in parallel.
2. A step takes `VECTORS` vectors, whose minima and maxima stay in registers. The last step ends
   with the tensor: an extreme does not mind elements that it sees twice.
3. Halves of the vectors are compared until one element is left, of which one thread makes the
   parameters.

Rejected: two reductions of TVM's, one element after the other since floats may not be reordered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tvmquant.machine import Machine
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import PARALLEL_BYTES, flat_view, product
from tvmquant.schedules.rounding import of_lanes, rounded_half_even, spread

# Comparisons in flight: their latency is 4 cycles, and two begin in each.
VECTORS = 4
GREATEST_FLOAT = 3.4028234663852886e38
QMAX = 255.0


@dataclass(frozen=True)
class RangeSpec:
    """Static parameters.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor.
    """

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tiling:
    """How the tensor is read.

    Parameters
    ----------
    lanes : int
        Elements per step, a power of two within the tensor.
    chunks : int
        Parts that run in parallel.
    """

    lanes: int
    chunks: int


def default_tiling(spec: RangeSpec, machine: Machine) -> Tiling:
    """Return a tiling with one chunk for each thread, where waking them pays."""
    total, lanes = product(spec.shape), VECTORS * vector_bits(machine.target) // 32
    while lanes > total:
        lanes //= 2
    pays = 4 * total >= PARALLEL_BYTES
    return Tiling(lanes, machine.threads if pays else 1)


def kernel(spec: RangeSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel: ``(x, range)``, the latter of shape (2,)."""
    tiling = default_tiling(spec, machine)
    x = te.placeholder(spec.shape, "float32", name="x")

    def body(sources: list[Any], destinations: list[Any]) -> tirx.Stmt:
        flat, view = flat_view(sources[0])
        return tirx.SeqStmt([view, *_statements(flat, destinations[0], tiling)])

    out = te.extern((2,), [x], body, name="out", dtype="float32")
    return with_facts(te.create_prim_func([x, out]), "dynamic_range_f32", "dynamic_range")


def _statements(flat: Any, out: Any, tiling: Tiling) -> list[tirx.Stmt]:
    lanes, chunks = tiling.lanes, tiling.chunks
    total = int(flat.shape[0])
    steps = -(-total // lanes)
    each = -(-steps // chunks)
    vector = of_lanes("float32", lanes)
    # of each chunk the least and the greatest elements
    found = [
        tirx.decl_buffer((chunks * lanes,), "float32", name, scope="global")
        for name in ("least", "greatest")
    ]
    chunk, step = tirx.Var("chunk", "int32"), tirx.Var("step", "int32")
    held = [tirx.decl_buffer((lanes,), "float32", name, scope="local") for name in ("low", "high")]
    start = tirx.min((chunk * each + step) * lanes, total - lanes)
    values = flat.vload([start], vector)
    zeros = spread(tirx.const(0.0, "float32"), lanes)
    loop = tirx.For(
        step, 0, each, tirx.ForKind.SERIAL,
        tirx.SeqStmt([
            held[0].vstore([0], tirx.min(values, held[0].vload([0], vector))),
            held[1].vstore([0], tirx.max(values, held[1].vload([0], vector))),
        ]),
    )  # fmt: skip
    stored = [
        whole.vstore([chunk * lanes], part.vload([0], vector))
        for whole, part in zip(found, held, strict=True)
    ]
    work = tirx.SeqStmt(
        [*map(tirx.AllocBuffer, held), *(part.vstore([0], zeros) for part in held), loop, *stored]
    )
    kind = tirx.ForKind.PARALLEL if chunks > 1 else tirx.ForKind.SERIAL
    statements = [*map(tirx.AllocBuffer, found), tirx.For(chunk, 0, chunks, kind, work)]
    low = _reduced(found[0], lanes, chunks, tirx.min, statements)
    high = _reduced(found[1], lanes, chunks, tirx.max, statements)
    return [*statements, *_parameters(low, high, out)]


def _reduced(
    whole: Any, lanes: int, chunks: int, combine: Callable[[Any, Any], Any],
    statements: list[tirx.Stmt],
) -> tirx.PrimExpr:  # fmt: skip
    """Return the extreme of a buffer; what computes it is added to the statements."""
    value = whole.vload([0], of_lanes("float32", lanes))
    for chunk in range(1, chunks):
        value = combine(value, whole.vload([chunk * lanes], of_lanes("float32", lanes)))
    width = lanes
    while width > 1:
        value = _bound("found", value, statements)
        width //= 2
        halves = [tirx.Shuffle([value], list(range(first, first + width))) for first in (0, width)]
        value = combine(*halves)
    return _bound("found", value, statements)


def _parameters(low: tirx.PrimExpr, high: tirx.PrimExpr, out: Any) -> list[tirx.Stmt]:
    """Return the statements of equation (4) that follow the extremes."""
    statements: list[tirx.Stmt] = []
    one, zero = tirx.const(1.0, "float32"), tirx.const(0.0, "float32")
    qmax = tirx.const(QMAX, "float32")
    step = _bound("step", (high - low) / qmax, statements)
    finite = tirx.min(step, tirx.const(GREATEST_FLOAT, "float32"))
    scale = _bound("scale", tirx.Select(step > zero, finite, one), statements)
    zero_point = tirx.max(tirx.min((zero - low) / scale, qmax), zero)
    nearest = rounded_half_even(zero_point, tirx.const(0, "int32"))
    stores = [
        tirx.BufferStore(out, scale, [0]),
        tirx.BufferStore(out, nearest.astype("float32"), [1]),
    ]
    return [*statements, *stores]


def _bound(name: str, value: tirx.PrimExpr, statements: list[tirx.Stmt]) -> tirx.Var:
    var = tirx.Var(name, value.ty.dtype)
    statements.append(tirx.Bind(var, value))
    return var
