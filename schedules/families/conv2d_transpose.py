"""Transposed convolutions (`schedules.conv2d_transpose`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from tvm import tirx

from tvmquant.bit_choice import BitChoice
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d_transpose
from tvmquant.schedules.conv2d_transpose import Conv2DTransposeSpec, Tiling
from tvmquant.schedules.families.contraction import (
    CONV2D_TRANSPOSE,
    Contraction,
    Layer,
    Lowered,
    Operand,
    Weight,
)
from tvmquant.schedules.families.family import Family, Tilings, finishing
from tvmquant.schedules.isa import DotProduct, dot_products, narrowed
from tvmquant.schedules.loops import round_up


class Conv2DTransposeFamily(Family):
    """Transposed convolutions, with 8-bit weights."""

    name = "conv2d_transpose"
    operation = "conv2d_transpose"

    def accepts(self, contraction: Contraction, choice: BitChoice, machine: Machine | None) -> bool:
        """Whether it is a transposed convolution."""
        return contraction.operator == CONV2D_TRANSPOSE

    def lower(self, layer: Layer, machine: Machine, tilings: Tilings) -> Lowered:
        """Return the kernel of a layer, and its arguments."""
        c = layer.contraction
        spec = Conv2DTransposeSpec(
            c.batch, c.height, c.width, c.channels, c.outputs, c.kernel, c.strides, c.padding,
            c.output_padding, c.dilation, c.groups, layer.input_zero_point, layer.epilogue,
            layer.residual_dtype,
        )  # fmt: skip
        tiling = tilings(self.name, spec, layer.name) or self.default(spec, machine)
        weight = layer.whole_weight
        arguments = (
            Operand("input"),
            Weight(
                conv2d_transpose.pack_weight(weight, spec, tiling), layer.whole_bits,
                channels=conv2d_transpose.CHANNELS,
            ),
            conv2d_transpose.pack_bias(layer.bias, weight, spec, tiling),
            *finishing(layer, conv2d_transpose.padded_outputs(spec, tiling)),
        )  # fmt: skip
        shape = (spec.batch, *spec.out_size, spec.outputs)
        return Lowered(self.kernel(spec, tiling), arguments, shape)

    def default(self, spec: Any, machine: Machine) -> Any:
        """Return the tiling that is chosen without measuring."""
        return conv2d_transpose.default_tiling(spec, machine)

    def others(self, spec: Conv2DTransposeSpec, machine: Machine) -> Iterator[Tiling]:
        """Yield what fits in registers, of every instruction."""
        per_group = spec.outputs // spec.groups
        steps = -(-spec.out_size[1] // spec.strides[1])
        for dot in dot_products(machine.target, exact=True, plain=True):
            usable = _within_groups(dot, per_group) if spec.groups > 1 else dot
            if usable is None:
                continue
            for channel_tile in (1, 2, 3, 4):
                lanes = usable.lanes * channel_tile
                if spec.groups > 1 and per_group % lanes:
                    continue
                divides = spec.outputs % lanes == 0 and all(
                    e % s == 0 for e, s in zip(spec.out_size, spec.strides, strict=True)
                )
                most = conv2d_transpose.accumulators(usable)
                most //= channel_tile * spec.strides[1]
                for column_tile in range(1, min(steps, most) + 1):
                    whole = divides and steps % column_tile == 0
                    for fused, parallel in itertools.product(
                        [True, False] if whole else [False],
                        [True, False] if machine.threads > 1 else [False],
                    ):
                        yield Tiling(usable, column_tile, channel_tile, fused, parallel)

    def kernel(self, spec: Any, tiling: Any) -> tirx.PrimFunc:
        """Return the scheduled kernel."""
        return conv2d_transpose.kernel(spec, tiling)

    def figures(self, spec: Conv2DTransposeSpec, tiling: Tiling) -> dict[str, float]:
        """Return what the time of a tiling depends on."""
        rows = round_up(spec.out_size[0], spec.strides[0])
        columns = round_up(spec.out_size[1], spec.strides[1] * tiling.column_tile)
        outputs = conv2d_transpose.padded_outputs(spec, tiling)
        inputs = round_up(spec.channels // spec.groups, tiling.dot.group)
        taps = math.prod(-(-k // s) for k, s in zip(spec.kernel, spec.strides, strict=True))
        useful = spec.batch * math.prod(spec.out_size) * spec.outputs * taps * spec.channels
        return {
            "work": float(spec.batch * rows * columns * outputs * taps * inputs),
            "useful": float(useful // spec.groups),
            "tasks": float(spec.batch * (rows // spec.strides[0]) if tiling.parallel else 1),
            "accumulators": float(tiling.column_tile * tiling.channel_tile * spec.strides[1]),
            "task_bytes": float(-(-spec.kernel[0] // spec.strides[0]) * spec.width * spec.channels),
        }


def _within_groups(dot: DotProduct, outputs: int) -> DotProduct | None:
    """Return a dot product whose lanes stay within one group of outputs, if there is one."""
    if outputs % dot.lanes == 0:
        return dot
    return None if dot.tensorized else narrowed(dot, math.gcd(outputs, dot.lanes))
