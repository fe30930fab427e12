"""Which tilings a convolution can have, and which of them is chosen without measuring.

`tilings` lists what `schedules.conv2d` can compile for a layer; `default_tiling` takes the one that
a model of issue slots and caches finds cheapest. Both start from the same register tiles.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tvmquant.machine import Caches, Machine
from tvmquant.schedules.conv2d_binary import LONGEST_COUNT, countable
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.conv2d_tasks import (
    RESIDENT,
    RegisterTile,
    balance,
    divided,
    divisions,
    pixel_bytes,
    task_choices,
    tasks,
)
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct, Stage, narrowed, offers
from tvmquant.schedules.skip_padding import asks, share

# Weights of a tile stay in this share of the first-level cache from pixel to pixel; beyond, bytes
# per cycle
RESIDENT_WEIGHTS = 7 / 8
SECOND_LEVEL_BANDWIDTH = 30.0
# and where a network's other layers have displaced them, from the third.
THIRD_LEVEL_BANDWIDTH = 20.0
# Cycles that it takes to start and end a parallel loop.
PARALLEL_LOOP_CYCLES = 4000.0
# Layers of fewer cycles are computed by one thread.
LEAST_PARALLEL_CYCLES = 4 * PARALLEL_LOOP_CYCLES
# Less of the threads' time in use is accepted only where no division reaches it.
LEAST_BALANCE = 0.9
# Vectors of output channels side by side, and pixels, that are tried
CHANNEL_TILES = (1, 2, 3, 4, 6, 8)
WIDEST_TILE = 28
# Where a chain is at least this long, widening every product by itself cannot be faster.
LONG_CHAIN = 8
# Extra time, as a share, of accumulators that are not `IssueCost.stacked`, and that in the loops
# that ask for padding (AVX512-VNNI, 14x14 256->256 3x3 with 6x4: 504 us, with a residual 690; with
# 7x2 481 and 489; on the stack 6x4 takes 493 and 510).
ON_HEAP = 0.06
ASKING_ON_HEAP = 0.2
# Instructions that widen a vector of counts into two, with loads and stores of these.
WIDENING = 9
# Cycles that unpacking takes for one vector of operands: with a store and a load, or in registers
# (measured on a dense layer, 2048 to 1000, of one row: 43 against 28 microseconds)
BLOCK_UNPACKING = 1.5
REGISTER_UNPACKING = 0.8


def tilings(spec: Conv2DSpec, dots: tuple[DotProduct, ...], machine: Machine) -> list[Tiling]:
    """List the tilings that a (flattened) layer can have.

    Parameters
    ----------
    spec : Conv2DSpec
        Pointwise layers already `flattened`.
    dots : tuple of DotProduct
        What the target offers (`isa.dot_products`); those whose 16-bit sums the spec's chain does
        not allow are left out.
    machine : Machine
        Its threads share the work, its caches hold what is read again.

    Returns
    -------
    list of Tiling
        Every register tile with the tasks that `default_tiling` would cut for it, with half and
        twice as many pixels a task, and with tasks over output channels. Never empty.
    """
    found: dict[Tiling, None] = {default_tiling(spec, dots, machine): None}
    for tile in _register_tiles(spec, dots, machine.caches):
        for tiling in task_choices(spec, tile, machine):
            found[tiling] = None
    return list(found)


@functools.lru_cache(maxsize=1024)  # networks repeat their layers
def default_tiling(spec: Conv2DSpec, dots: tuple[DotProduct, ...], machine: Machine) -> Tiling:
    """Choose a tiling from registers, caches and exact division, without measuring.

    Parameters
    ----------
    spec : Conv2DSpec
        Pointwise layers already `flattened`.
    dots : tuple of DotProduct
        What the target offers (`isa.dot_products`).
    machine : Machine
        Its threads share the work, its caches hold what is read again.
    """
    threads, caches = machine.threads, machine.caches
    tiles = [divided(spec, tile, machine) for tile in _register_tiles(spec, dots, caches)]
    ordered = sorted(((_cost(spec, tiling, caches), i) for i, tiling in enumerate(tiles)))
    if threads > 1 and ordered[0][0] + _streaming(spec, tiles[0]) < LEAST_PARALLEL_CYCLES:
        return replace(default_tiling(spec, dots, machine.with_threads(1)), parallel="none")
    best, least = tiles[ordered[0][1]], (True, math.inf)
    for alone, i in ordered:
        if (False, alone) >= least:  # however well its tasks divide
            break
        for tiling in divisions(spec, tiles[i], threads):
            used = balance(tasks(spec, tiling), threads)
            time = (used < LEAST_BALANCE, _cost(spec, tiling, caches) / used)
            if time < least:
                best, least = tiling, time
    return best


# -- register tiles -------------------------------------------------------------------------------


def _register_tiles(
    spec: Conv2DSpec, dots: tuple[DotProduct, ...], caches: Caches
) -> Iterator[RegisterTile]:
    """Yield every tile that fits in the registers; one column by one vector fits any layer."""
    for dot in _usable(spec, dots):
        for chain in _chains(spec, dot):
            for unpack in _unpackings(spec, dot, chain):
                for channels in CHANNEL_TILES:
                    if spec.groups > 1 and (spec.outputs // spec.groups) % (dot.lanes * channels):
                        continue
                    for columns, flat in _columns(spec, caches):
                        if columns % dot.rows:
                            continue
                        tile = RegisterTile(dot, columns, channels, chain, unpack, flat)
                        if _registers(spec, tile) <= dot.registers:
                            yield tile


def _columns(spec: Conv2DSpec, caches: Caches) -> Iterator[tuple[int, bool]]:
    """Yield how many pixels a tile can hold, of a row, or flat where rows would leave a rest."""
    inputs = spec.height * spec.width * spec.channels
    resident = inputs <= RESIDENT * caches.second_level
    flat = spec.out_height > 1 and resident and not spec.joined
    for columns in range(1, min(WIDEST_TILE, max(spec.pixels, 1)) + 1):
        if columns <= max(spec.out_width, 1):
            yield columns, False
        if flat and spec.out_width % columns:
            yield columns, True


def _usable(spec: Conv2DSpec, dots: tuple[DotProduct, ...]) -> list[DotProduct]:
    """Keep the dot products that suit weights and groups; narrow the generic one until it does."""
    if spec.binary:
        return [dot for dot in dots[:-1] if countable(spec, dot)] or [dots[-1]]
    allowed = [d for d in dots if d.tensorized and (spec.chain > 0 or not d.saturates)]
    if spec.groups == 1:
        return allowed or [dots[-1]]
    outputs, inputs = spec.outputs // spec.groups, spec.channels // spec.groups
    alone = [d for d in allowed if d.rows == 1]
    fitting = [d for d in alone if outputs % d.lanes == 0 and inputs % d.group == 0]
    return fitting or [narrowed(dots[-1], math.gcd(outputs, dots[-1].lanes))]


def _chains(spec: Conv2DSpec, dot: DotProduct) -> list[int]:
    """Return the lengths of 16-bit chains that suit a layer: the longest, with least padding.

    A chain must not leave its group of weights.
    """
    if dot.looks_up:  # zeros beyond the run would differ from something
        steps = spec.run // dot.values
        return [max(d for d in range(1, min(steps, LONGEST_COUNT) + 1) if steps % d == 0)]
    if not dot.saturates:
        return [1]
    if spec.w_group:
        return [math.gcd(spec.chain, spec.w_group // dot.group)]
    steps = -(-spec.run // dot.group)
    longest = min(spec.chain, steps)
    exact = max(d for d in range(1, longest + 1) if steps % d == 0)
    even = -(-steps // -(-steps // longest))
    return sorted({exact, even} | ({1} if spec.chain < LONG_CHAIN else set()), reverse=True)


def _unpackings(spec: Conv2DSpec, dot: DotProduct, chain: int) -> list[str]:
    """Return where 4-bit weights can be unpacked; registers hold both nibbles of every byte."""
    if spec.w_bits == 8:
        return ["block"]
    chained = dot.saturates and (chain > 1 or spec.w_group > 0)
    if (chained and chain % 2) or (spec.w_group and not chained):
        return ["block"]
    if dot.tensorized and not offers(dot, Stage.CHAIN_NIBBLES if chained else Stage.DOT_NIBBLES):
        return ["block"]
    return ["block", "registers"]


def _registers(spec: Conv2DSpec, tile: RegisterTile) -> int:
    """Return how many vector registers the inner loop of a tile needs.

    Accumulators, ``channels`` vectors of weights and, of each product in turn, the broadcast input
    and the intermediate sums: measured as what still runs without spilling.
    """
    dot, channels = tile.dot, tile.channels
    accumulators = tile.columns * channels * dot.vectors * spec.planes
    if spec.w_bits == 4 and tile.unpack == "registers":
        return accumulators + 2 * channels + 4  # two masks
    if tile.chain > 1 and not dot.looks_up:
        return accumulators + channels + (2 if channels > 1 else 1)
    return accumulators + channels * spec.weight_planes * dot.weight_vectors + dot.cost.scratch


# -- cost -----------------------------------------------------------------------------------------


def _cost(spec: Conv2DSpec, tiling: Tiling, caches: Caches) -> float:
    """Estimate cycles of the layer, up to a constant.

    One step of the reduction issues ``columns * channels`` dot products (two instructions each in
    long chains), reads ``channels`` vectors and broadcasts ``columns`` scalars.
    """
    dot, cost, columns, channels = (
        tiling.dot, tiling.dot.cost, tiling.column_tile, tiling.channel_tile
    )  # fmt: skip
    e = Extents.of(spec, tiling)
    tiles = e.rows * e.columns / columns
    products = columns // dot.rows * channels * spec.planes
    read, weights = columns // dot.rows * spec.input_planes, channels * spec.weight_planes
    loads = read * 0.5 + weights * cost.load
    if dot.looks_up:
        # of each pixel the index is loaded and then its row; of 28x28 128->128 3x3 measured
        # 549 GMAC/s with 4x2, 536 with 2x4, 518 with 5x2, 502 with 3x2, 486 with 2x2, 387 with 4x1
        issued = products * (cost.instructions + WIDENING / tiling.chain) + 2 * read + weights
        multiply = products * cost.multiplications * cost.multiplication
        step = max(multiply, loads, (issued + 2) / cost.total_per_cycle)
        if e.steps * e.taps * spec.run_rows * weights * dot.lanes > caches.first_level:
            step += 0.1 * weights  # from the second-level cache
        stores = 0.0
        if cost.stacked is not None and products > cost.stacked:
            step *= 1 + ON_HEAP
            stores = 2.0 * products
    elif e.chained:
        # a chain ends with two instructions; accumulators that find no register go through memory
        spilled = 2 * products + channels + 2 > dot.registers
        instructions = 2 + (3.2 if spilled else 2.0) / tiling.chain
        multiply = products * (1 + 1 / tiling.chain) * cost.multiplication
        issue = products * instructions / cost.per_cycle
        bytes_ = e.steps * e.taps * spec.run_rows * channels * dot.lanes * dot.group
        if bytes_ > RESIDENT_WEIGHTS * caches.first_level:
            loads += channels * dot.lanes * dot.group / SECOND_LEVEL_BANDWIDTH
        # of the least times of 13 tiles with chains of 8 and 96
        step = max(multiply, loads, 1.3 * issue) + 0.05 * (columns + channels) + 0.15
        stores = 1.5 * columns  # few channels at a time: the lines of the output come again
    else:
        multiply = products * cost.multiplications * cost.multiplication
        weights *= dot.weight_vectors
        issue = (products * cost.instructions + read + weights + 2) / cost.total_per_cycle
        # operands compete with the products for ports, weights from the second-level cache most:
        # measured 98 GMAC/s with 5x2, 97 with 4x2 and 3x3, 94 with 2x4 and 7x1
        step = max(multiply, loads, issue) + 0.19 * read + 0.25 * weights
        stores = 0.0
        if cost.stacked is not None and products > cost.stacked:
            step *= 1 + (ASKING_ON_HEAP if asks(spec, tiling) else ON_HEAP)
            stores = 2.0 * products
    if e.in_registers:
        step += REGISTER_UNPACKING * channels
    elif spec.w_bits == 4:
        step += BLOCK_UNPACKING * channels * columns / (tiling.row_block * tiling.column_block)
    steps = e.steps * e.taps * spec.run_rows * share(spec, tiling)
    finish = 8.0 if isinstance(spec.epilogue, Epilogue) else 2.0
    if spec.out_extents(flat=tiling.flat)[1] % columns:
        finish += 5.0  # each pixel is stored under a condition
    # vectors of 32-bit accumulators for each of outputs
    finish *= np.dtype("int32").itemsize if dot.looks_up else 1
    epilogue = columns * channels * finish / 4.0 + channels + stores
    if tiling.flat:
        epilogue += 4.0 * columns  # to find the row and column of each
    computed = tiles * e.outputs / (channels * dot.lanes) * (step * steps + epilogue + 8.0)
    copies = not e.direct or dot.rows > 1
    return computed + (_copying(spec, tiling) if copies else 0.0)


def _streaming(spec: Conv2DSpec, tiling: Tiling) -> float:
    """Estimate the cycles in which weights come from beyond the second-level cache."""
    return (
        spec.macs
        * spec.weight_planes
        / spec.batch
        / spec.pixels
        * np.dtype(tiling.dot.weight_dtype).itemsize
        / tiling.dot.values
        / THIRD_LEVEL_BANDWIDTH
    )


def _copying(spec: Conv2DSpec, tiling: Tiling) -> float:
    """Estimate the cycles in which padded rows are copied, and read from where they come to lie."""
    height = spec.out_height if tiling.flat else tiling.row_block
    reach = (height - 1) * spec.strides[0] + (spec.kernel[0] - 1) * spec.dilation[0] + 1
    rows = spec.out_height / height * reach
    width = spec.width + spec.padding[1] + spec.padding[3]
    bytes_: float = 0.0
    if not Extents.of(spec, tiling).direct:
        bytes_ += rows * width * pixel_bytes(spec, tiling.dot)
    if tiling.dot.rows > 1:
        bytes_ += 2.0 * spec.pixels * spec.kernel[0] * spec.row  # windows of pairs
    if spec.joined:
        bytes_ += 40.0 * spec.pixels * spec.kernel[0]  # vectors that cross lines: 2.5 cycles a row
    # a parallel loop of its own, into a cache further away
    return PARALLEL_LOOP_CYCLES + bytes_ / 8.0 if tiling.parallel == "channels" else bytes_ / 16.0
