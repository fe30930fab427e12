"""Linear resize of integers, NHWC: the four neighbours of each position, weighted in fixed point.

    q = (sum_ij r_i c_j x_ij + 2**(2 WEIGHT_BITS - 1)) >> 2 WEIGHT_BITS        half up, one rounding

``r`` and ``c`` are multiples of ``2**-WEIGHT_BITS`` that add up to 1 (`tvmquant.resize.linear`), so
that the scale and zero point of the input remain those of the output. Bytes are summed in 32 bits
(255 * 2**22 < 2**31), 16-bit integers in 64, as are those of 30 bits in int32 (2**30 * 2**32).

Strategy: 1. the channels, which all have the same neighbours, in vectors; 2. the rows in parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.resize import WEIGHT_BITS
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import (
    overlap_tails,
    overlapping_lanes,
    parallel_chunks,
    product,
    vectorize,
)


@dataclass(frozen=True)
class LinearResizeSpec:
    """Linear resize; the arguments are ``(x, rows, columns, output)``.

    Parameters
    ----------
    shape : tuple of int
        (N, H, W, C).
    out_size : tuple of int
        (OH, OW): the int32 matrices ``rows`` (OH, 3) and ``columns`` (OW, 3) hold the lower and
        the upper neighbour of each row and column, and the weight of the upper one.
    dtype : str
        ``"uint8"``, ``"int16"`` or ``"int32"``.
    """

    shape: tuple[int, int, int, int]
    out_size: tuple[int, int]
    dtype: str = "uint8"

    @property
    def sum_dtype(self) -> str:
        """Type that holds the weighted sum."""
        return "int32" if self.dtype == "uint8" else "int64"


def output_shape(spec: LinearResizeSpec) -> tuple[int, int, int, int]:
    """Return the shape of the result."""
    return (spec.shape[0], *spec.out_size, spec.shape[3])


def compute(spec: LinearResizeSpec) -> tirx.PrimFunc:
    """Return the computation."""
    x = te.placeholder(spec.shape, spec.dtype, name="x")
    rows = te.placeholder((spec.out_size[0], 3), "int32", name="rows")
    columns = te.placeholder((spec.out_size[1], 3), "int32", name="columns")
    bits = WEIGHT_BITS[spec.dtype]
    one = tirx.const(1 << bits, spec.sum_dtype)
    half = tirx.const(1 << (2 * bits - 1), spec.sum_dtype)

    def blend(low: Any, high: Any, weight: Any) -> tirx.PrimExpr:
        weight = weight.astype(spec.sum_dtype)
        return low * (one - weight) + high * weight

    def element(n: Any, h: Any, w: Any, c: Any) -> tirx.PrimExpr:
        def of_row(row: Any) -> tirx.PrimExpr:
            low, high = (x[n, row, columns[w, i], c].astype(spec.sum_dtype) for i in (0, 1))
            return blend(low, high, columns[w, 2])

        total = blend(of_row(rows[h, 0]), of_row(rows[h, 1]), rows[h, 2])
        return ((total + half) >> (2 * bits)).astype(spec.dtype)

    return te.create_prim_func([x, rows, columns, te.compute(output_shape(spec), element, "out")])


def kernel(spec: LinearResizeSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    sch = Schedule(compute(spec))
    n, h, _w, c = sch.get_loops(sch.get_sblock("out"))
    widest = 2 * vector_bits(machine.target) // (32 if spec.sum_dtype == "int32" else 64)
    vectorize(sch, c, overlapping_lanes(spec.shape[3], widest))
    parallel_chunks(sch, sch.fuse(n, h), machine.threads, 16 * product(output_shape(spec)))
    func = overlap_tails(sch.mod["main"])
    return with_facts(func, f"resize_linear_{spec.dtype}", "resize2d")
