"""Depthwise convolutions (`schedules.depthwise_conv2d`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

from tvm import tirx

from tvmquant.bit_choice import BitChoice
from tvmquant.machine import Machine
from tvmquant.schedules import depthwise_conv2d, depthwise_tiling
from tvmquant.schedules.depthwise_conv2d import DepthwiseConv2DSpec, Tiling
from tvmquant.schedules.depthwise_spec import rows_read, window_products
from tvmquant.schedules.families.contraction import (
    CONV2D,
    Array,
    Contraction,
    Layer,
    Lowered,
    Operand,
    Weight,
    padded,
)
from tvmquant.schedules.families.family import Family, Tilings, finishing
from tvmquant.schedules.isa import Stage, dot_products
from tvmquant.schedules.loops import divisors, round_up

# The longest unrolled reduction: LLVM's time grows faster than its length.
UNROLLED = 256
# Tiles of rows that a task may take.
BLOCKS: Final = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 24, 28, 32, 56, 64, 112, 128)


class DepthwiseConv2DFamily(Family):
    """Convolutions of which every output reads one input channel, with 8-bit weights."""

    name = "depthwise_conv2d"
    operation = "depthwise_conv2d"
    one_channel = True

    def accepts(self, contraction: Contraction, choice: BitChoice, machine: Machine | None) -> bool:
        """Whether every group is one of several input channels."""
        return contraction.operator == CONV2D and contraction.groups == contraction.channels > 1

    def lower(self, layer: Layer, machine: Machine, tilings: Tilings) -> Lowered:
        """Return the kernel of a layer, and its arguments."""
        c = layer.contraction
        spec = DepthwiseConv2DSpec(
            c.batch, c.height, c.width, c.channels, c.outputs // c.channels, c.kernel, c.strides,
            c.padding, c.dilation, layer.input_zero_point, layer.epilogue, layer.residual_dtype,
        )  # fmt: skip
        tiling = tilings(self.name, spec, layer.name) or self.default(spec, machine)

        def pack(vector: Array) -> Array:
            return depthwise_conv2d.pack_vector(vector, spec, tiling)

        length = depthwise_conv2d.padded_outputs(spec, tiling)
        weight = layer.whole_weight[..., 0]
        arguments = (
            Operand("input"),
            Weight(
                depthwise_conv2d.pack_weight(weight, spec, tiling), layer.whole_bits,
                channels=depthwise_conv2d.CHANNELS,
            ),
            pack(padded(layer.bias, length)),
            *finishing(layer, length, pack=pack),
        )  # fmt: skip
        shape = (spec.batch, spec.out_height, spec.out_width, spec.outputs)
        return Lowered(self.kernel(spec, tiling), arguments, shape)

    def default(self, spec: Any, machine: Machine) -> Any:
        """Return the tiling that is chosen without measuring."""
        return depthwise_conv2d.default_tiling(spec, machine)

    def others(self, spec: DepthwiseConv2DSpec, machine: Machine) -> Iterator[Tiling]:
        """Yield what fits, of every instruction."""
        for dot in dot_products(machine.target, Stage.TAPS, exact=True):
            # the rows that a dot product interleaves have to be neighbours
            if dot.tensorized and spec.dilation[0] > 1:
                continue
            shares = dot.tensorized and depthwise_tiling.shares_rows(spec, dot)
            for vectors, row_tile, column_tile in itertools.product(
                [1, 2] if dot.tensorized else [1],
                [tile for tile in ([1, 2] if shares else [1]) if tile <= max(1, spec.out_height)],
                range(1, min(depthwise_tiling.WIDEST_TILE, spec.out_width) + 1),
            ):
                first = Tiling(dot, vectors, row_tile, column_tile, 1, 1)
                products = window_products(spec, first) * dot.group
                if column_tile * row_tile * products > UNROLLED:
                    continue
                steps = -(-spec.outputs // (dot.lanes * vectors))
                rows = -(-spec.out_height // row_tile)
                for row_block, channel_block, parallel in itertools.product(
                    {min(block, rows) for block in BLOCKS},
                    divisors(steps),
                    [True, False] if machine.threads > 1 else [False],
                ):
                    yield Tiling(
                        dot, vectors, row_tile, column_tile, row_block, channel_block, parallel
                    )

    def kernel(self, spec: Any, tiling: Any) -> tirx.PrimFunc:
        """Return the scheduled kernel."""
        return depthwise_conv2d.kernel(spec, tiling)

    def figures(self, spec: DepthwiseConv2DSpec, tiling: Tiling) -> dict[str, float]:
        """Return what the time of a tiling depends on."""
        height = tiling.row_block * tiling.row_tile
        products = window_products(spec, tiling) * tiling.dot.group
        outputs = depthwise_conv2d.padded_outputs(spec, tiling)
        rows, columns = (
            round_up(spec.out_height, height),
            round_up(spec.out_width, tiling.column_tile),
        )
        channels = tiling.channel_block * tiling.lanes
        tasks = spec.batch * (rows // height) * (outputs // channels) if tiling.parallel else 1
        reach = (height - 1) * spec.strides[0] + rows_read(spec, tiling)
        across = (columns - 1) * spec.strides[1] + spec.kernel[1]
        return {
            "work": float(spec.batch * rows * columns * outputs * products),
            "useful": float(spec.macs),
            "tasks": float(tasks),
            "accumulators": float(tiling.vectors * tiling.row_tile),
            "task_bytes": float(reach * across * channels),
        }
