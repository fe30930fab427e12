"""Convolutions that leave out products with padding, and those for pixels that nobody reads.

A scheduled kernel multiplies whole register tiles with whole windows: with zeros beyond the image
as well, and for pixels beyond the output where the tile does not divide it. `skip_padding` puts
conditions into its loops. A tile skips the rows of its window that lie outside the image for all
its pixels. Where a tap of a row lies outside for some of them, a copy of the loop asks pixel by
pixel. Of a 3x3 convolution on 14x14, one in 21 products is with rows of padding and one with
columns; on 7x7, two each.

Time of 3x3 layers on Zen 3, one thread, as a share of that without conditions: 56x56x64 0.99 (rows
only), 28x28x128 0.96, 14x14x256 0.93, 8x8x448 0.85, 7x7x512 0.86; of 7x1 on 17x17x192 0.91.
ResNet-18 as a whole 0.945, ResNet-50 0.965, InceptionV3 and DenseNet-121 0.975.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import s_tir, tirx

from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.loops import with_body

# A loop that asks pays where it leaves out at least this share of the products.
LEAST_SHARE = 0.01
# What it takes a tile for each tap, in times of one vector's product: to begin the loop, and more
# for each pixel of a flat tile, whose row and column are to be found; and as a share of the
# products, where the answers differ. Fitted to 3x3 layers from 56x56x64 to 7x7x512 on Zen 3.
BEGINNING = 8.0
FINDING = 3.0
ASKING = 0.05


# -- which products count: conditions on arrays of numbers, or on expressions of TVM ---------------


def _place(spec: Conv2DSpec, tiling: Tiling, row: Any, pixel: Any) -> tuple[Any, Any]:
    """Return the output row and column of a pixel of a tile."""
    return (pixel // spec.out_width, pixel % spec.out_width) if tiling.flat else (row, pixel)


def skips_rows(spec: Conv2DSpec, tiling: Tiling) -> bool:
    """Whether no product with a row of padding is computed.

    The bits of padding are no zeros, and what makes up for them (`conv2d_binary`) cannot depend on
    the tile that a pixel is in: tiles of several rows do not skip any.
    """
    return Extents.of(spec, tiling).skips and not (spec.binary and tiling.flat)


def _row_conditions(
    spec: Conv2DSpec, tiling: Tiling, row: Any, ry: Any
) -> tuple[list[Any], list[Any]]:
    """Return when row ``ry`` of the window is not above the image, and when it is not below."""
    below = [row < spec.out_height] if Extents.of(spec, tiling).rows > spec.out_height else []
    if not skips_rows(spec, tiling):
        return [], below
    top, _, bottom, _ = spec.padding
    read = row * spec.strides[0] + ry * spec.dilation[0] - top
    return [read >= 0] if top else [], below + ([read < spec.height] if bottom else [])


def _conditions(
    spec: Conv2DSpec, tiling: Tiling, row: Any, pixel: Any, ry: Any, tap: Any
) -> list[Any]:
    """Return when one pixel's products with a tap count, in a tile that skips rows."""
    e = Extents.of(spec, tiling)
    row, column = _place(spec, tiling, row, pixel)
    found = []
    if tiling.flat:  # pixels of several rows
        above, below = _row_conditions(spec, tiling, row, ry)
        found += above + below
    elif e.columns > spec.out_width:
        found.append(column < spec.out_width)
    if e.skips and e.tap_loop > 1:
        _, left, _, right = spec.padding
        read = column * spec.strides[1] + tap * spec.dilation[1] - left
        found += [read >= 0] if left else []
        found += [read < spec.width] if right else []
    return found


# -- what that saves -------------------------------------------------------------------------------


def share(spec: Conv2DSpec, tiling: Tiling) -> float:
    """Return how long the tiles of a layer multiply, as a share of all their products."""
    skipping, asking = _shares(spec, tiling)
    return asking if asks(spec, tiling) else skipping


def asks(spec: Conv2DSpec, tiling: Tiling) -> bool:
    """Whether the kernel has a loop that asks pixel by pixel."""
    if spec.binary or Extents.of(spec, tiling).chained:
        return False  # chains take 1.1 to 1.4 of the time with their sums in 16 bits
    if tiling.dot.rows > 1:
        return False  # pixels are multiplied together
    skipping, asking = _shares(spec, tiling)
    return asking < skipping * (1 - LEAST_SHARE)


@functools.lru_cache(maxsize=4096)
def _shares(spec: Conv2DSpec, tiling: Tiling) -> tuple[float, float]:
    """Return the shares with rows skipped only, and with the loop that asks as well."""
    e = Extents.of(spec, tiling)
    # axes: rows of tiles, rows of the window, tiles of a row, taps, pixels of a tile
    row = np.arange(e.rows)[:, None, None, None, None]
    ry = np.arange(spec.run_rows)[:, None, None, None]
    pixel = np.arange(e.columns).reshape(-1, 1, tiling.column_tile)
    tap = np.arange(e.tap_loop)[:, None]
    first, last = (_place(spec, tiling, row, pixel[..., [i]])[0] for i in (0, -1))
    above, _ = _row_conditions(spec, tiling, last, ry)
    _, below = _row_conditions(spec, tiling, first, ry)
    some = _all([*above, *below]).astype(float)
    counted = _all(_conditions(spec, tiling, row, pixel, ry, tap))
    beginning = BEGINNING + (FINDING * tiling.column_tile if tiling.flat else 0.0)
    apart = e.tap_loop if e.taps_apart else 1
    products = e.steps / apart * tiling.column_tile * tiling.channel_tile
    asking = np.where(counted.all(axis=-1), 1.0, counted.mean(axis=-1) + ASKING)[..., None]
    return float(some.mean()), float((some * (asking + beginning / products)).mean())


def _all(conditions: list[Any]) -> npt.NDArray[np.bool_]:
    everywhere = np.ones((1, 1, 1, 1, 1), bool)
    return functools.reduce(np.logical_and, conditions, everywhere)


# -- kernels ---------------------------------------------------------------------------------------


def skip_padding(function: tirx.PrimFunc, spec: Conv2DSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Let the tiles of a kernel skip products.

    Parameters
    ----------
    function : PrimFunc
        As `schedules.conv2d.schedule` leaves it, with its names of blocks and loops.
    spec, tiling
        Of the kernel.
    """
    loops, (row, pixel, column) = _found(function.body)
    ry = loops["ry"]
    together = tiling.dot.rows
    pairs = [_substituted(pixel, column, i) for i in range(tiling.column_tile // together)]
    tile = [together * pair + i for pair in pairs for i in range(together)]
    body = function.body

    if asks(spec, tiling):
        name = Extents.of(spec, tiling).tap
        tap = loops[name]
        every = [
            condition
            for at in (tile if tiling.flat else (tile[0], tile[-1]))
            for condition in _conditions(spec, tiling, row, at, ry, tap)
        ]
        asking = _copied_work(function, name)
        _, (_, at, pixels) = _found(asking)
        asking = _where(asking, pixels, _conditions(spec, tiling, row, at, ry, tap))
        body = _changed(body, tap, lambda work: tirx.IfThenElse(tirx.all(*every), work, asking))

    first, last = (_place(spec, tiling, row, at)[0] for at in (tile[0], tile[-1]))
    above, _ = _row_conditions(spec, tiling, last, ry)
    _, below = _row_conditions(spec, tiling, first, ry)
    return function.with_body(_where(body, ry, [*above, *below]))


def _copied_work(function: tirx.PrimFunc, name: str) -> tirx.Stmt:
    """Return what a loop does once more, with variables of its own for all that it defines."""
    copy = s_tir.renew_defs(function)
    work: list[tirx.Stmt] = []

    def taken(body: tirx.Stmt) -> tirx.Stmt:
        work.append(body)
        return tirx.Evaluate(0)

    outside = _changed(copy.body, _found(copy.body)[0][name], taken)
    kept = {*copy.params, *_variables(outside)}
    pairs = zip(_variables(copy.body), _variables(function.body), strict=True)
    original = {
        new: old
        for new, old in [*pairs, *zip(copy.params, function.params, strict=True)]
        if new in kept
    }
    return tvm_ffi.structural_map(
        work[0], [(tvm.ir.Var, lambda var: original.get(var, var))], order="post"
    )


def _variables(body: tirx.Stmt) -> list[tvm.ir.Var]:
    """Return the variables, among them buffers, in the order in which they occur."""
    found: list[tvm.ir.Var] = []
    tvm_ffi.structural_walk(body, [(tvm.ir.Var, found.append)], order="pre")
    return found


def _found(body: tirx.Stmt) -> tuple[dict[str, tirx.Var], tuple[Any, Any, tirx.Var]]:
    """Return the loops' variables, and where the block that adds up products is.

    That is the expressions of row and pixel, and the variable of the loop over a tile's pixels.
    """
    loops: dict[str, tirx.Var] = {}
    unrolled: list[tirx.Var] = []
    realized: dict[str, Any] = {}

    def loop(node: Any) -> None:
        loops[str(node.loop_var.name)] = node.loop_var
        if node.kind == tirx.ForKind.UNROLLED:
            unrolled.append(node.loop_var)

    def block(node: Any) -> None:
        realized[str(node.block.name_hint).removesuffix("_o")] = node.iter_values

    visits = [(tirx.For, loop), (s_tir.SBlockRealize, block)]
    tvm_ffi.structural_walk(body, visits, order="pre")
    _, row, pixel, *_ = realized["acc_update"]
    read = _variables(pixel)
    (column,) = (var for var in unrolled if any(var.same_as(v) for v in read))
    return loops, (row, pixel, column)


def _substituted(expr: Any, var: tirx.Var, value: int) -> Any:
    def constant(node: Any) -> Any:
        return tirx.const(value, "int32") if node.same_as(var) else node

    return tvm_ffi.structural_map(expr, [(tirx.Var, constant)], order="post")


def _where(body: tirx.Stmt, var: tirx.Var, conditions: list[Any]) -> tirx.Stmt:
    """Return a statement in which the loop over a variable works under conditions."""
    if not conditions:
        return body
    return _changed(body, var, lambda work: tirx.IfThenElse(tirx.all(*conditions), work, None))


def _changed(body: tirx.Stmt, var: tirx.Var, change: Callable[[tirx.Stmt], tirx.Stmt]) -> tirx.Stmt:
    """Return a statement with what the loop over a variable does changed."""

    def loop(node: Any) -> Any:
        return with_body(node, change(node.body)) if node.loop_var.same_as(var) else node

    return tvm_ffi.structural_map(body, [(tirx.For, loop)], order="post")
