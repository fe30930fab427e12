"""Peaks of what multiplies in networks, measured in the run whose layers are held against them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchmarks import binary_kernels, kernels
from tvmquant.deploy.manifest import LayerInfo
from tvmquant.machine import Machine
from tvmquant.schedules import isa
from tvmquant.schedules.families import sums_one_channel

# of the names of kernels that count bits: planes of the input and of the weight
_PLANES = re.compile(r"_u([1-7])s([1-7])s32_")


@dataclass(frozen=True)
class Peaks:
    """Multiply-accumulates a second.

    Attributes
    ----------
    bytes : float
        Of the target's fastest dot product, on registers alone.
    words : float
        Of its fastest one of two products, or where it has none of the first.
    bits : float
        Of what its binary kernels count bits with, in the first-level cache: for each pair of
        planes.
    """

    bytes: float
    words: float
    bits: float

    def of(self, layer: LayerInfo) -> float:
        """Return the peak of what a layer's kernel multiplies with."""
        if sums_one_channel(layer.op):
            return self.words
        planes = _PLANES.search(layer.kernel)
        if planes is None:
            return self.bytes
        return self.bits / (int(planes[1]) * int(planes[2]))


def network_peaks(target: str, threads: int) -> Peaks:
    """Measure the peaks of a target.

    Raises
    ------
    TargetError
        As of `kernels.peak_kernel`.
    """
    dots = isa.dot_products(Machine.of(target).target)
    words = next((dot for dot in dots if dot.group == 2), dots[0])
    return Peaks(
        kernels.peak_macs(dots[0], target, threads),
        kernels.peak_macs(words, target, threads),
        binary_kernels.peak_macs(target, threads),
    )
