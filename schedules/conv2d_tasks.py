"""How a convolution is divided into tasks of threads, and what its register tiles are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tvmquant.machine import Machine
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.isa import DotProduct
from tvmquant.schedules.loops import round_up

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
# Share of the threads' time in use that is good enough not to look for other tasks.
BALANCED = 0.95


@dataclass(frozen=True)
class RegisterTile:
    """What the inner loops are; `Tiling` without the division into tasks."""

    dot: DotProduct
    columns: int
    channels: int
    chain: int
    unpack: str
    flat: bool


def tasks(spec: Conv2DSpec, tiling: Tiling) -> int:
    """Return the iterations of the parallel loop, all of the same length; 1 where there is none."""
    if tiling.parallel == "none":
        return 1
    e = Extents.of(spec, tiling)
    count = spec.batch * (e.rows // tiling.row_block) * (e.columns // tiling.column_block)
    if tiling.parallel == "channels":
        count *= e.outputs // (tiling.dot.lanes * tiling.channel_tile)
    return count


def pixel_bytes(spec: Conv2DSpec, dot: DotProduct) -> int:
    """Return how long a pixel of the input is where a dot product reads it."""
    elements = spec.input_planes * spec.channels // dot.values
    return elements * np.dtype(dot.input_dtype).itemsize


def balance(count: int, threads: int) -> float:
    """Return the share of the threads' time in use when so many equal tasks are dealt out."""
    return count / (-(-count // threads) * threads)


def task_choices(spec: Conv2DSpec, tile: RegisterTile, machine: Machine) -> Iterator[Tiling]:
    """Yield the divisions of a layer into tasks that are worth trying."""
    chosen = divided(spec, tile, machine)
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


def divided(spec: Conv2DSpec, tile: RegisterTile, machine: Machine) -> Tiling:
    """Divide the layer into tasks for the threads of a machine."""
    dot, threads, caches = tile.dot, machine.threads, machine.caches
    window = spec.kernel[0] * spec.kernel[1] * spec.channels // spec.groups // dot.values
    weights = window * spec.weight_planes * spec.outputs * np.dtype(dot.weight_dtype).itemsize
    inputs = spec.batch * spec.height * spec.width * pixel_bytes(spec, dot)
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


def divisions(spec: Conv2DSpec, tiling: Tiling, threads: int) -> Iterator[Tiling]:
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


def _by_rows(spec: Conv2DSpec, tile: RegisterTile, machine: Machine) -> Tiling:
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
        limit = max(1, most // (tile.columns * pixel_bytes(spec, tile.dot)))
        row_block, column_block = 1, tile.columns * _chunk(tiles, limit, threads)
    else:
        row_bytes = spec.width * pixel_bytes(spec, tile.dot) * spec.strides[0]
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
