"""Dense layers: convolutions of one pixel, a row of the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx

from tvmquant.bit_choice import BitChoice
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d
from tvmquant.schedules.families.contraction import DENSE, Contraction, Layer, Lowered
from tvmquant.schedules.families.conv2d import Conv2DFamily
from tvmquant.schedules.families.family import Tilings


class DenseFamily(Conv2DFamily):
    """Dense layers."""

    operation = "dense"

    def accepts(self, contraction: Contraction, choice: BitChoice, machine: Machine | None) -> bool:
        """Whether it is a dense layer."""
        return contraction.operator == DENSE

    def lower(self, layer: Layer, machine: Machine, tilings: Tilings) -> Lowered:
        """Return the kernel of a layer, and its arguments; nothing is padded with a zero point."""
        return super().lower(replace(layer, input_zero_point=0), machine, tilings)

    def kernel(self, spec: Any, tiling: Any) -> tirx.PrimFunc:
        """Return the scheduled kernel."""
        return conv2d.kernel(spec, tiling, self.operation)
