"""Which tiling a depthwise convolution has where none was measured."""

from __future__ import annotations

from dataclasses import replace

from tvmquant.machine import Machine
from tvmquant.schedules.depthwise_spec import (
    COPIED,
    DepthwiseConv2DSpec,
    Tiling,
    copies,
    padded_outputs,
    pairs_along,
    rows_read,
    widened,
    window_products,
)
from tvmquant.schedules.isa import DotProduct, Stage, dot_products
from tvmquant.schedules.loops import PARALLEL_BYTES, round_up

# The padded rows of a task are copied at half the speed beyond this share of each cache,
ROWS = 1 / 2
# and what one row of outputs reads stays in the first-level cache within this.
WINDOW = 3 / 4
# Output columns unrolled together,
WIDEST_TILE = 8
# and dot products: 5x5 would have 420, and MobileNetV3-small take 1.02 times as long
UNROLLED = 240
TASK_CYCLES = 200


def default_tiling(spec: DepthwiseConv2DSpec, machine: Machine) -> Tiling:
    """Choose a tiling from registers, caches and exact division, without measuring."""
    dots = dot_products(machine.target, Stage.TAPS, exact=True)
    usable = [d for d in dots if d.tensorized and _pays(spec, d)] or [dots[-1]]
    # the instruction that computes fewest lanes in vain, the widest of equals
    dot = min(usable, key=lambda d: round_up(spec.outputs, d.lanes))
    # a vector that reaches beyond the channels is stored lane by lane, 2.6 times as slow
    double = round_up(spec.outputs, 2 * dot.lanes)
    wide = dot.tensorized and (
        double == spec.outputs or (spec.outputs % dot.lanes > 0 and double * 8 <= 9 * spec.outputs)
    )
    first = Tiling(dot, 2 if wide else 1, 1, 1, 1, 1)
    if _sharing_pays(spec, first):
        first = replace(first, row_tile=2)
    products = window_products(spec, first) * first.row_tile * first.vectors
    widest = max(1, min(WIDEST_TILE, spec.out_width, UNROLLED // products))
    # columns computed in vain, and those interleaved again at the start of each tile
    column_tile = min(
        range(1, widest + 1), key=lambda t: round_up(spec.out_width, t) * (1 + 0.8 / t)
    )
    first = replace(first, column_tile=column_tile)
    steps = -(-spec.outputs // first.lanes)
    candidates = [
        replace(first, row_block=row_block, channel_block=channel_block)
        for channel_block in range(1, steps + 1)
        if steps % channel_block == 0
        for row_block in range(1, -(-spec.out_height // first.row_tile) + 1)
    ]
    best = min(candidates, key=lambda tiling: _cycles(spec, tiling, machine))
    return replace(best, parallel=machine.threads > 1 and spec.macs >= 2 * PARALLEL_BYTES)


def shares_rows(spec: DepthwiseConv2DSpec, dot: DotProduct) -> bool:
    """Whether output rows can share interleaved input rows without more zero weights."""
    return spec.strides[0] == 1 or spec.strides[0] % dot.group == 0


def _sharing_pays(spec: DepthwiseConv2DSpec, alone: Tiling) -> bool:
    """Whether two output rows that share input rows beat each one alone."""
    if not (alone.dot.tensorized and shares_rows(spec, alone.dot) and spec.out_height > 1):
        return False
    if not pairs_along(spec, alone):
        return True
    # with stride 2 they share loads only; with stride 1, 3x3 take 0.96 of the time, 5x5 1.03
    return spec.strides[0] == 1 and round_up(spec.out_height, 2) <= 1.05 * spec.out_height


def _pays(spec: DepthwiseConv2DSpec, dot: DotProduct) -> bool:
    """Whether interleaving rows beats multiplying one tap at a time."""
    if spec.dilation[0] > 1:
        return False  # the rows of a group would have to be neighbours
    if dot.group == 4 or spec.strides[0] == 1 or spec.kernel[0] > 3:
        return True
    # a pair of rows and one left over: 1.3 to 1.5x widened, 0.92 to 1.08x otherwise
    return widened(spec, Tiling(dot, 2, 1, 1, 1, 1))


def _cycles(spec: DepthwiseConv2DSpec, tiling: Tiling, machine: Machine) -> float:
    """Estimate the cycles of the busiest thread."""
    height = tiling.row_block * tiling.row_tile
    window = rows_read(spec, tiling)
    steps = padded_outputs(spec, tiling) // tiling.lanes
    tasks = spec.batch * -(-spec.out_height // height) * (steps // tiling.channel_block)
    instructions = 2 * window_products(spec, tiling) + 12
    multiply = height * spec.out_width * tiling.channel_block * tiling.vectors * instructions / 3
    columns = spec.width + spec.padding[1] + spec.padding[3]
    copied = ((height - copies(spec, tiling)) * spec.strides[0] + window) * columns
    width = tiling.channel_block * tiling.lanes
    copy = copied * (1 + width / COPIED)
    caches = machine.caches
    for size in (ROWS * caches.first_level, ROWS * caches.second_level):
        copy *= 2 if copied * width > size else 1
    # one step of channels touches a line of each pixel
    if window * columns * min(width, caches.line) > WINDOW * caches.first_level:
        multiply *= 1.25
    return -(-tasks // machine.threads) * (multiply + copy + TASK_CYCLES)
