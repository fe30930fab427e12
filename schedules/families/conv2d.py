"""Convolutions with any stride, padding, dilation and groups (`schedules.conv2d`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from tvm import tirx

from tvmquant.bit_choice import BitChoice
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d
from tvmquant.schedules.conv2d import Conv2DSpec, Tiling
from tvmquant.schedules.conv2d_spec import Extents
from tvmquant.schedules.conv2d_tasks import tasks
from tvmquant.schedules.families.contraction import (
    CONV2D,
    Contraction,
    Layer,
    Lowered,
    Operand,
    Weight,
)
from tvmquant.schedules.families.family import Family, Tilings, finishing
from tvmquant.schedules.isa import CHAIN_GROUP, multiplies_in_pairs
from tvmquant.schedules.loops import divisors

# Tiles that a task of a row of pixels may take.
BLOCKS: Final = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 24, 28, 32, 56, 64, 112, 128)


class Conv2DFamily(Family):
    """Convolutions, with 4-bit weights and groups of weights as well."""

    name = "conv2d"
    operation = "conv2d"

    def accepts(self, contraction: Contraction, choice: BitChoice, machine: Machine | None) -> bool:
        """Whether it is a convolution."""
        return contraction.operator == CONV2D

    def scales_groups(
        self, contraction: Contraction, choice: BitChoice, machine: Machine | None
    ) -> bool:
        """Whether groups of weights follow the runs."""
        return spec_of(contraction).groupable

    def lower(self, layer: Layer, machine: Machine, tilings: Tilings) -> Lowered:
        """Return the kernel of a layer, and its arguments."""
        spec, weight, scale = _narrowed(layer, machine)
        tiling = tilings(self.name, spec, layer.name) or self.default(spec, machine)
        length = conv2d.padded_outputs(spec, tiling)
        shape = conv2d.output_shape(spec, tiling)
        bits = layer.weight_format.bits if spec.w_group else layer.whole_bits
        order = None if scale is not None else conv2d.weight_layout(spec, tiling)
        blocks = conv2d.pack_weight(weight, spec, tiling)
        packed: list[Any] = [Weight(blocks, bits, layout=order, channels=conv2d.CHANNELS)]
        if scale is not None:
            packed.append(conv2d.pack_scale(scale, spec, tiling))
        effective = layer.whole_weight if spec.w_group else weight
        arguments = (
            Operand("input", conv2d.input_shape(spec, tiling)),
            *packed,
            conv2d.pack_bias(layer.bias, effective, spec, tiling),
            *finishing(layer, length, shape),
        )
        return Lowered(self.kernel(spec, tiling), arguments, shape)

    def default(self, spec: Any, machine: Machine) -> Any:
        """Return the tiling that a model of issue slots and caches finds cheapest."""
        return conv2d.target_tiling(spec, machine)

    def others(self, spec: Conv2DSpec, machine: Machine) -> Iterator[Tiling]:
        """Yield the register tiles that the schedule offers, each with more ways to cut tasks."""
        offered = conv2d.tilings(spec, conv2d.target_dots(spec, machine), machine)
        yield from offered
        tiles = dict.fromkeys(
            replace(t, row_block=1, column_block=t.column_tile, parallel="rows") for t in offered
        )
        for tile in tiles:
            if tile.flat:  # a task computes the whole image
                continue
            across = -(-spec.out_width // tile.column_tile)
            cuts = [(block, across) for block in divisors(spec.out_height)]
            if spec.out_height == 1:  # a flattened layer: its row is cut
                cuts = [(1, min(block, across)) for block in BLOCKS]
            for (rows, columns), parallel in itertools.product(
                dict.fromkeys(cuts), ("rows", "channels")
            ):
                yield replace(
                    tile, row_block=rows, column_block=columns * tile.column_tile, parallel=parallel
                )

    def kernel(self, spec: Any, tiling: Any) -> tirx.PrimFunc:
        """Return the scheduled kernel."""
        return conv2d.kernel(spec, tiling)

    def figures(self, spec: Conv2DSpec, tiling: Tiling) -> dict[str, float]:
        """Return what the time of a tiling depends on."""
        extents = Extents.of(spec, tiling)
        rows, columns = tiling.row_block, tiling.column_block
        if tiling.flat:
            rows, columns = -(-columns // spec.out_width), spec.out_width
        reach = (rows - 1) * spec.strides[0] + spec.kernel[0]
        across = (columns - 1) * spec.strides[1] + spec.kernel[1]
        reduced = spec.run_rows * extents.taps * extents.run * tiling.dot.values
        return {
            "work": float(spec.batch * extents.rows * extents.columns * extents.outputs * reduced),
            "useful": float(spec.macs),
            "tasks": float(tasks(spec, tiling)),
            "accumulators": float(tiling.column_tile * tiling.channel_tile * spec.planes),
            "task_bytes": float(reach * across * spec.channels),
        }

    def timing(self, spec: Any) -> Any:
        """Return the spec without mere values; of the proven chains, the longest that is used."""
        return replace(super().timing(spec), chain=_timing_chain(spec))


def spec_of(contraction: Contraction) -> Conv2DSpec:
    """Return the geometry of a convolution or dense layer."""
    return Conv2DSpec(
        contraction.batch, contraction.height, contraction.width, contraction.channels,
        contraction.outputs, contraction.kernel, contraction.strides, contraction.padding,
        contraction.dilation, contraction.groups,
    )  # fmt: skip


def _narrowed(layer: Layer, machine: Machine) -> tuple[Conv2DSpec, Any, Any]:
    """Return the spec with what the weights allow, the weight to store, and groups' factors.

    Groups follow the runs of whole rows of the window; where dilation or grouped channels cut these
    up, the products of weights and multipliers are kept as 8-bit weights. So are weights of runs of
    one step: nibbles are unpacked for two.
    """
    spec = replace(
        spec_of(layer.contraction).flattened(),
        input_zero_point=layer.input_zero_point,
        epilogue=layer.epilogue,
        residual_dtype=layer.residual_dtype,
    )
    weight, scale = layer.weight, None
    held = layer.weight_format
    w_bits, w_group = conv2d.container_of(held.bits), held.group
    if (w_group and not spec.groupable) or spec.run <= CHAIN_GROUP:
        w_bits, w_group, weight = 8, 0, layer.whole_weight
    spec = replace(spec, w_bits=w_bits, w_group=w_group)
    if w_group and layer.multiplier is not None:
        scale = conv2d.group_scale(layer.multiplier, spec, layer.name)
    if w_bits == 4:
        conv2d.check_narrow(weight, layer.name)
    if multiplies_in_pairs(machine.target):
        chain = conv2d.provable_chain(weight, spec, layer.input_qmin, layer.input_qmax)
        spec = replace(spec, chain=chain)
    return spec, weight, scale


def _timing_chain(spec: Conv2DSpec) -> int:
    """Return the longest chain that tilings of a spec use: equal for bounds that differ in vain."""
    if spec.chain == 0:
        return 0
    if spec.w_group:
        return math.gcd(spec.chain, spec.w_group // CHAIN_GROUP)
    steps = -(-spec.run // CHAIN_GROUP)
    longest = min(spec.chain, steps)
    exact = max(d for d in range(1, longest + 1) if steps % d == 0)
    return max(exact, -(-steps // -(-steps // longest)))
