"""Which tilings a convolution can have, and which of them is chosen without measuring.

`tilings` lists what `schedules.conv2d` can compile for a layer; `default_tiling` takes the one that
a model of issue slots and caches finds cheapest. Both start from the same register tiles.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tvmquant.machine import Caches, Machine
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct, Stage, narrowed, offers
from tvmquant.schedules.loops import round_up
from tvmquant.schedules.skip_padding import asks, share

# Shares of the caches. Input rows of one task are kept in the second level beside the weights of
# one channel block.
ROWS = 1 / 4
# Pixels of a 1x1 layer handled by one task stay in the first level,
CHUNK = 3 / 4
# or, where 4-bit weights are unpacked for each task, in the second: so that more share them.
UNPACKED_CHUNK = 3 / 16
# Activations that fit into this share of the second are cheap to read again for every block of
# output channels.
RESIDENT = 3 / 4
# Weights of a tile that stay in the first level from pixel to pixel; beyond, bytes per cycle
RESIDENT_WEIGHTS = 7 / 8
SECOND_LEVEL_BANDWIDTH = 30.0
# and where a network's other layers have displaced them, from the third.
THIRD_LEVEL_BANDWIDTH = 20.0
# Cycles that it takes to start and end a parallel loop.
PARALLEL_LOOP_CYCLES = 4000.0
# Layers of fewer cycles are computed by one thread.
LEAST_PARALLEL_CYCLES = 4 * PARALLEL_LOOP_CYCLES
# Share of the threads' time in use that is good enough not to look for other tasks.
BALANCED = 0.95
# Less is accepted only where no division reaches it.
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
# Cycles that unpacking takes for one vector of operands: with a store and a load, or in registers
# (measured on a dense layer, 2048 to 1000, of one row: 43 against 28 microseconds)
BLOCK_UNPACKING = 1.5
REGISTER_UNPACKING = 0.8


@dataclass(frozen=True)
class _RegisterTile:
    """What the inner loops are; `Tiling` without the division into tasks."""

    dot: DotProduct
    columns: int
    channels: int
    chain: int
    unpack: str
    flat: bool


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
        for tiling in _task_choices(spec, tile, machine):
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
    tiles = [_tasks(spec, tile, machine) for tile in _register_tiles(spec, dots, caches)]
    ordered = sorted(((_cost(spec, tiling, caches), i) for i, tiling in enumerate(tiles)))
    if threads > 1 and ordered[0][0] + _streaming(spec, tiles[0]) < LEAST_PARALLEL_CYCLES:
        return replace(default_tiling(spec, dots, machine.with_threads(1)), parallel="none")
    best, least = tiles[ordered[0][1]], (True, math.inf)
    for alone, i in ordered:
        if (False, alone) >= least:  # however well its tasks divide
            break
        for tiling in _divisions(spec, tiles[i], threads):
            used = balance(tasks(spec, tiling), threads)
            time = (used < LEAST_BALANCE, _cost(spec, tiling, caches) / used)
            if time < least:
                best, least = tiling, time
    return best


def tasks(spec: Conv2DSpec, tiling: Tiling) -> int:
    """Return the iterations of the parallel loop, all of the same length; 1 where there is none."""
    if tiling.parallel == "none":
        return 1
    e = Extents.of(spec, tiling)
    count = spec.batch * (e.rows // tiling.row_block) * (e.columns // tiling.column_block)
    if tiling.parallel == "channels":
        count *= e.outputs // (tiling.dot.lanes * tiling.channel_tile)
    return count


def balance(count: int, threads: int) -> float:
    """Return the share of the threads' time in use when so many equal tasks are dealt out."""
    return count / (-(-count // threads) * threads)


# -- register tiles -------------------------------------------------------------------------------


def _register_tiles(
    spec: Conv2DSpec, dots: tuple[DotProduct, ...], caches: Caches
) -> Iterator[_RegisterTile]:
    """Yield every tile that fits in the registers; one column by one vector fits any layer."""
    for dot in _usable(spec, dots):
        for chain in _chains(spec, dot):
            for unpack in _unpackings(spec, dot, chain):
                for channels in CHANNEL_TILES:
                    if spec.groups > 1 and (spec.outputs // spec.groups) % (dot.lanes * channels):
                        continue
                    for columns, flat in _columns(spec, caches):
                        tile = _RegisterTile(dot, columns, channels, chain, unpack, flat)
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
    allowed = [d for d in dots if d.tensorized and (spec.chain > 0 or not d.saturates)]
    if spec.groups == 1:
        return allowed or [dots[-1]]
    outputs, inputs = spec.outputs // spec.groups, spec.channels // spec.groups
    fitting = [d for d in allowed if outputs % d.lanes == 0 and inputs % d.group == 0]
    return fitting or [narrowed(dots[-1], math.gcd(outputs, dots[-1].lanes))]


def _chains(spec: Conv2DSpec, dot: DotProduct) -> list[int]:
    """Return the lengths of 16-bit chains that suit a layer: the longest, with least padding.

    A chain must not leave its group of weights.
    """
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


def _registers(spec: Conv2DSpec, tile: _RegisterTile) -> int:
    """Return how many vector registers the inner loop of a tile needs.

    Accumulators, ``channels`` vectors of weights and, of each product in turn, the broadcast input
    and the intermediate sums: measured as what still runs without spilling.
    """
    dot, channels = tile.dot, tile.channels
    accumulators = tile.columns * channels
    if spec.w_bits == 4 and tile.unpack == "registers":
        return accumulators + 2 * channels + 4  # two masks
    if tile.chain > 1:
        return accumulators + channels + (2 if channels > 1 else 1)
    return accumulators + channels + dot.cost.scratch


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
    products = columns * channels
    loads = columns * 0.5 + channels * cost.load
    if e.chained:
        # a chain ends with two instructions; accumulators that find no register go through memory
        spilled = 2 * products + channels + 2 > dot.registers
        instructions = 2 + (3.2 if spilled else 2.0) / tiling.chain
        multiply = products * (1 + 1 / tiling.chain) * cost.multiplication
        issue = products * instructions / cost.per_cycle
        weights = e.steps * e.taps * spec.run_rows * channels * dot.lanes * dot.group
        if weights > RESIDENT_WEIGHTS * caches.first_level:
            loads += channels * dot.lanes * dot.group / SECOND_LEVEL_BANDWIDTH
        # of the least times of 13 tiles with chains of 8 and 96
        step = max(multiply, loads, 1.3 * issue) + 0.05 * (columns + channels) + 0.15
        stores = 1.5 * columns  # few channels at a time: the lines of the output come again
    else:
        multiply = products * cost.multiplications * cost.multiplication
        issue = (products * cost.instructions + columns + channels + 2) / 5.0
        # operands compete with the products for ports, weights from the second-level cache most:
        # measured 98 GMAC/s with 5x2, 97 with 4x2 and 3x3, 94 with 2x4 and 7x1
        step = max(multiply, loads, issue) + 0.19 * columns + 0.25 * channels
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
    epilogue = products * finish / 4.0 + channels + stores
    if tiling.flat:
        epilogue += 4.0 * columns  # to find the row and column of each
    computed = tiles * e.outputs / (channels * dot.lanes) * (step * steps + epilogue + 8.0)
    return computed + (0.0 if e.direct else _copying(spec, tiling))


def _streaming(spec: Conv2DSpec, tiling: Tiling) -> float:
    """Estimate the cycles in which weights come from beyond the second-level cache."""
    return (
        spec.macs
        / spec.batch
        / spec.pixels
        * np.dtype(tiling.dot.weight_dtype).itemsize
        / THIRD_LEVEL_BANDWIDTH
    )


def _copying(spec: Conv2DSpec, tiling: Tiling) -> float:
    """Estimate the cycles in which padded rows are copied, and read from where they come to lie."""
    height = spec.out_height if tiling.flat else tiling.row_block
    reach = (height - 1) * spec.strides[0] + (spec.kernel[0] - 1) * spec.dilation[0] + 1
    rows = spec.out_height / height * reach
    width = (spec.width + spec.padding[1] + spec.padding[3]) * spec.channels
    bytes_ = rows * width * np.dtype(tiling.dot.input_dtype).itemsize
    if spec.joined:
        bytes_ += 40.0 * spec.pixels * spec.kernel[0]  # vectors that cross lines: 2.5 cycles a row
    # a parallel loop of its own, into a cache further away
    return PARALLEL_LOOP_CYCLES + bytes_ / 8.0 if tiling.parallel == "channels" else bytes_ / 16.0


# -- tasks ----------------------------------------------------------------------------------------


def _task_choices(spec: Conv2DSpec, tile: _RegisterTile, machine: Machine) -> Iterator[Tiling]:
    """Yield the divisions of a layer into tasks that are worth trying."""
    chosen = _tasks(spec, tile, machine)
    by_rows = _by_rows(spec, tile, machine)
    yield chosen
    yield by_rows
    if not spec.joined:
        yield _by_channels(spec, by_rows)
    if tile.flat:
        return
    if spec.out_height == 1:
        width = round_up(spec.out_width, tile.columns)
        tiles = by_rows.column_block // tile.columns
        for block in (max(1, tiles // 2), tiles * 2):
            yield replace(by_rows, column_block=min(block * tile.columns, width))
        return
    for block in (max(1, by_rows.row_block // 2), by_rows.row_block * 2):
        yield replace(by_rows, row_block=min(block, spec.out_height))


def _tasks(spec: Conv2DSpec, tile: _RegisterTile, machine: Machine) -> Tiling:
    """Divide the layer into tasks for the threads of a machine."""
    dot, threads, caches = tile.dot, machine.threads, machine.caches
    item = np.dtype(dot.input_dtype).itemsize
    window = spec.kernel[0] * spec.kernel[1] * spec.channels // spec.groups
    weights = window * spec.outputs * np.dtype(dot.weight_dtype).itemsize
    inputs = spec.batch * spec.height * spec.width * spec.channels * item
    by_rows = _by_rows(spec, tile, machine)
    if spec.joined:
        return by_rows
    blocks = -(-spec.outputs // (dot.lanes * tile.channels))
    by_channels = _by_channels(spec, by_rows)
    rows_balance = balance(tasks(spec, by_rows), threads) * _useful(spec, by_rows)
    channels_balance = balance(blocks, threads) * _useful(spec, by_channels)
    if inputs <= RESIDENT * caches.second_level and weights > inputs:
        least = 0.85
    else:
        least = 1.05 if inputs <= ROWS * caches.second_level else 1.25
    return by_channels if channels_balance >= least * rows_balance else by_rows


def _divisions(spec: Conv2DSpec, tiling: Tiling, threads: int) -> Iterator[Tiling]:
    """Yield a division of the layer into tasks, and where it keeps threads waiting all others."""
    yield tiling
    if balance(tasks(spec, tiling), threads) >= BALANCED:
        return
    height, width = spec.out_extents(flat=tiling.flat)
    across = -(-width // tiling.column_tile)
    # the pixels of a flat tile are not cut
    cuts = range(1, 2 if tiling.flat else 1 + min(across, 4 * threads if height == 1 else 4))
    columns = dict.fromkeys(tiling.column_tile * -(-across // count) for count in cuts)
    rows = [d for d in range(height, 0, -1) if height % d == 0]
    for axis in ("rows",) if spec.joined else ("rows", "channels"):
        for row_block in rows:
            for column_block in columns:
                yield replace(tiling, parallel=axis, row_block=row_block, column_block=column_block)


def _useful(spec: Conv2DSpec, tiling: Tiling) -> float:
    """Return the share of the computed pixels that the output has."""
    e = Extents.of(spec, tiling)
    return spec.pixels / (e.rows * e.columns)


def _by_channels(spec: Conv2DSpec, by_rows: Tiling) -> Tiling:
    height, width = spec.out_extents(flat=by_rows.flat)
    width = round_up(width, by_rows.column_tile)
    return replace(by_rows, parallel="channels", row_block=height, column_block=width)


def _by_rows(spec: Conv2DSpec, tile: _RegisterTile, machine: Machine) -> Tiling:
    item = np.dtype(tile.dot.input_dtype).itemsize
    threads, caches = machine.threads, machine.caches
    chunk = int(CHUNK * caches.first_level)
    height, width = spec.out_extents(flat=tile.flat)
    if tile.flat:
        row_block, column_block = height, round_up(width, tile.columns)
    elif spec.joined:
        limit = max(1, chunk // (spec.run * item * tile.columns))
        tiles = -(-width // tile.columns)
        row_block = _best_divisor(height, max(1, limit // tiles), spec.batch, threads)
        column_block = tile.columns * -(-tiles // -(-tiles // limit))
    elif height == 1:  # a flattened layer: cut the row
        tiles = -(-width // tile.columns)
        shared = spec.w_bits == 4 and tile.unpack == "block"
        most = int(UNPACKED_CHUNK * caches.second_level) if shared else chunk
        limit = max(1, most // (tile.columns * spec.channels * item))
        row_block, column_block = 1, tile.columns * _chunk(tiles, limit, threads)
    else:
        row_bytes = spec.width * spec.channels * item * spec.strides[0]
        limit = max(1, min(8, int(ROWS * caches.second_level) // row_bytes))
        row_block = _best_divisor(height, limit, spec.batch, threads)
        column_block = round_up(width, tile.columns)
    return Tiling(
        tile.dot, tile.columns, tile.channels, row_block, column_block, "rows", tile.chain,
        tile.unpack, tile.flat,
    )  # fmt: skip


def _chunk(tiles: int, limit: int, threads: int) -> int:
    """Return how many tiles a task takes, at most ``limit``, wasting least time at the end."""
    sizes = range(max(1, limit // 2), limit + 1) if tiles > limit else range(1, tiles + 1)

    def rounds(size: int) -> int:
        count = -(-tiles // size)
        return -(-count // threads) * size

    least = min(rounds(size) for size in sizes)
    return max(size for size in sizes if rounds(size) <= least * 1.01)


def _best_divisor(extent: int, limit: int, outer: int, threads: int) -> int:
    """Return the largest divisor of ``extent`` up to ``limit`` that leaves the threads balanced."""
    divisors = [d for d in range(1, min(limit, extent) + 1) if extent % d == 0]
    best = max(balance(outer * extent // d, threads) for d in divisors)
    return max(d for d in divisors if balance(outer * extent // d, threads) >= best - 0.06)
