"""Bits of signs of bytes, as convolutions and dense layers of one bit read them.

Matches ``bits[p, j] = pack(x[p, c] >= least[c] for the channels c of element j) ^ turned[j]``: of
every pixel the signs of its channels, each by a threshold of its own from which on it is +1, or,
where ``turned`` has a one, -1. A tensor of signs is the case of thresholds of 128. What an element
holds, `isa.binary_stages` says.

Strategy: 1. a few pixels at a time, so that thresholds stay in registers; 2. one comparison of
`PACKED` channels, whose result is bits (`Stage.PACK`); 3. blocks of pixels in parallel.

Measured on Zen 5, 56x56 with 128 channels: 3 microseconds, where equation (3) to bytes and a kernel
that packs these took 20.
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
    """

    pixels: int
    channels: int
    dot: DotProduct

    @property
    def elements(self) -> int:
        """Elements of a pixel."""
        return self.channels // self.dot.values


def elements_of(positive: npt.NDArray[np.bool_], dot: DotProduct) -> npt.NDArray[Any]:
    """Return which channels (..., C) are +1 as elements (..., C / dot.values) of an input."""
    return shifted(bits_of(positive, dot), dot)


def compute(spec: PackSpec) -> tirx.PrimFunc:
    """Define the kernel; arguments: x, least, turned (of one pixel), and the output."""
    dot = spec.dot
    x = te.placeholder((spec.pixels, spec.channels), "uint8", name="x")
    # tensorization finds a part of what has more dimensions than the intrinsic's operand
    least = te.placeholder((1, spec.channels), "uint8", name="least")
    turned = te.placeholder((1, spec.elements), dot.input_dtype, name="turned")

    def value(pixel: Any, at: Any) -> tirx.PrimExpr:
        return signs(dot, lambda c: least[0, c] <= x[pixel, c], at) ^ turned[0, at]

    out = te.compute((spec.pixels, spec.elements), value, name="bits")
    return te.create_prim_func([x, least, turned, out])


def kernel(spec: PackSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    sch = Schedule(compute(spec))
    pixel, element = sch.get_loops(sch.get_sblock("bits"))
    # tensorization takes no predicate: a block of pixels divides them
    together = max(d for d in divisors(spec.pixels) if d <= PIXELS)
    blocks, pixel = sch.split(pixel, [None, together])
    words, packed = sch.split(element, [None, PACKED // spec.dot.values])
    sch.reorder(blocks, words, pixel, packed)
    parallel_chunks(sch, blocks, machine.threads, spec.pixels * spec.channels)
    sch.unroll(pixel)
    if isa.offers(spec.dot, Stage.PACK):
        sch.tensorize(packed, isa.intrinsic(spec.dot, Stage.PACK))
    name = f"pack_bits_{spec.dot.name}_{spec.pixels}x{spec.channels}"
    return with_facts(sch.mod["main"], name, "pack_bits")
