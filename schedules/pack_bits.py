"""Bits of bytes, as convolutions and dense layers of one bit, or few, read them.

Matches ``bits[p, j] = pack(x[p, c] >= least[c] for the channels c of element j) ^ turned[j]``: of
every pixel the signs of its channels, each by a threshold of its own from which on it is +1, or,
where ``turned`` has a one, -1. A tensor of signs is the case of thresholds of 128. What an element
holds, `isa.binary_stages` says.

Of bytes of several bits each is a plane: ``bits[i, p, j]`` packs bit i, moved to that of 128.

Strategy: 1. a few pixels at a time, so that thresholds stay in registers; 2. one comparison of
`PACKED` channels, whose result is bits (`Stage.PACK`); 3. blocks of pixels in parallel.

Measured on Zen 5, 56x56 with 128 channels: 4 microseconds, where equation (3) to bytes took 14, not
packed yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules import isa
from tvmquant.schedules.conv2d_binary import bits_of
from tvmquant.schedules.isa import DotProduct, Stage
from tvmquant.schedules.isa.binary_stages import PACKED, shifted, signs
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import divisors, parallel_chunks

# Most pixels of which one threshold's channels are packed together.
PIXELS = 8


@dataclass(frozen=True)
class PackSpec:
    """Static parameters.

    Parameters
    ----------
    pixels : int
        Of all images; rows of a dense layer.
    channels : int
        A multiple of `PACKED`.
    dot : DotProduct
        What reads the bits.
    planes : int
        Bits of a byte; 1 for signs.
    """

    pixels: int
    channels: int
    dot: DotProduct
    planes: int = 1

    @property
    def elements(self) -> int:
        """Elements of a pixel."""
        return self.channels // self.dot.values


def planes_of(x: npt.NDArray[np.uint8], dot: DotProduct, planes: int) -> npt.NDArray[Any]:
    """Return the bits of bytes (..., C) as elements (planes, ..., C / dot.values) of an input."""
    return np.stack([elements_of((x >> plane & 1) > 0, dot) for plane in range(planes)])


def elements_of(positive: npt.NDArray[np.bool_], dot: DotProduct) -> npt.NDArray[Any]:
    """Return which channels (..., C) are +1 as elements (..., C / dot.values) of an input."""
    return shifted(bits_of(positive, dot), dot)


def compute(spec: PackSpec) -> tirx.PrimFunc:
    """Define the kernel; arguments: x, least, turned (of one pixel), and the output.

    Blocks: ``planes`` (of several), ``bits``.
    """
    dot = spec.dot
    x = te.placeholder((spec.pixels, spec.channels), "uint8", name="x")
    # tensorization finds a part of what has more dimensions than the intrinsic's operand
    least = te.placeholder((1, spec.channels), "uint8", name="least")
    turned = te.placeholder((1, spec.elements), dot.input_dtype, name="turned")

    def moved(plane: Any, pixel: Any, channel: Any) -> tirx.PrimExpr:
        return x[pixel, channel] << (7 - plane).astype("uint8")

    if spec.planes > 1:
        planes = te.compute((spec.planes, *x.shape), moved, name="planes")

    def value(plane: Any, pixel: Any, at: Any) -> tirx.PrimExpr:
        def positive(channel: Any) -> tirx.PrimExpr:
            byte = planes[plane, pixel, channel] if spec.planes > 1 else x[pixel, channel]
            return least[0, channel] <= byte

        return signs(dot, positive, at) ^ turned[0, at]

    out = te.compute((spec.planes, spec.pixels, spec.elements), value, name="bits")
    return te.create_prim_func([x, least, turned, out])


def kernel(spec: PackSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    sch = Schedule(compute(spec))
    plane, pixel, element = sch.get_loops(sch.get_sblock("bits"))
    # tensorization takes no predicate: a block of pixels divides them
    together = max(d for d in divisors(spec.pixels) if d <= PIXELS)
    blocks, pixel = sch.split(pixel, [None, together])
    words, packed = sch.split(element, [None, PACKED // spec.dot.values])
    sch.reorder(blocks, words, pixel, plane, packed)
    if spec.planes > 1:
        planes = sch.get_sblock("planes")
        sch.compute_at(planes, plane, preserve_unit_loops=True)
        sch.vectorize(sch.get_loops(planes)[-1])
    sch.unroll(plane)
    parallel_chunks(sch, blocks, machine.threads, spec.pixels * spec.channels)
    sch.unroll(pixel)
    if isa.offers(spec.dot, Stage.PACK):
        sch.tensorize(packed, isa.intrinsic(spec.dot, Stage.PACK))
    width = f"_u{spec.planes}" if spec.planes > 1 else ""
    name = f"pack_bits{width}_{spec.dot.name}_{spec.pixels}x{spec.channels}"
    return with_facts(sch.mod["main"], name, "pack_bits")
