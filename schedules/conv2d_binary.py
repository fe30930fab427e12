"""Convolutions of values that are -1 or +1: bits that differ are counted.

*Input.* The network's tensor holds bytes, 127 for -1 and 129 for +1; the kernel is given its bits
(`schedules.pack_bits`).

*Padding* is the zero point, 128 where the bytes are signs. A bit has no such value: it is padded
with zero bits, -1. A tap that reads padding adds -w in place of z w, z = zero_point - 128, for each
of its weights w; that is the same for all input values, and the bias makes up for it. With K
products, M of which differ,

    sum x w = K - 2 M + sum over taps in the padding of (1 + z) w                               (2)

of those taps that are computed: all, or all but those of rows in the padding (`skip_padding`),
whose z w the bias adds as well. So it depends on an output pixel's distance to the border. Pixels
of equal bias are a *class*, of rows and of columns (`pack_bias`).

*Counts looked up* (`isa.binary_stages`) are added up in bytes: at most 4 a step, so `LONGEST_COUNT`
steps fit 8 bits. They are widened into 16 bits, which hold every count of a window of less than
2**16 products (`countable`); larger ones are counted word by word, in 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx

from tvmquant.formats import BINARY_MIDDLE
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.isa import INDEX_BITS, DotProduct
from tvmquant.schedules.isa.binary_stages import ENTRIES, count, counts
from tvmquant.schedules.skip_padding import skips_rows

# Steps of at most four differing bits that an 8-bit sum holds.
LONGEST_COUNT = 255 // INDEX_BITS

__all__ = [
    "LONGEST_COUNT",
    "bias_shape",
    "bits_of",
    "border",
    "countable",
    "counted",
    "counts",
    "differing",
    "pack_bias",
    "table_placeholder",
]


def countable(spec: Conv2DSpec, dot: DotProduct) -> bool:
    """Whether the accumulators of a dot product hold every count of a window."""
    window = spec.kernel[0] * spec.row
    return window <= int(np.iinfo(dot.accumulator_dtype).max)


# -- blocks ----------------------------------------------------------------------------------------


def table_placeholder() -> te.Tensor:
    """Return the argument in which `counts` are looked up."""
    return te.placeholder((ENTRIES,), "uint8", name="table_of_counts")


def differing(value: Any, weight: Any, dtype: str) -> Any:
    """Return in how many bits two words differ."""
    return tirx.popcount(value ^ weight).astype(dtype)


def counted(
    value: Any, weight: te.Tensor, table: te.Tensor, spec: Conv2DSpec, tiling: Tiling
) -> te.Tensor:
    """Define the accumulators as sums of chains in 8 bits, each of ``tiling.chain`` steps.

    Parameters
    ----------
    value : function of (n, h, w, o, ry, rt, k)
        Index k of the run that output (h, w, o) reads with its window's row ry and tap rt.
    weight : Tensor of `conv2d_packing.weight_shape`
        Even bytes of a vector hold the weights of the first half of its outputs, odd ones those of
        the second: so that masks and shifts widen sums into the outputs' order.
    table : Tensor
    """
    e, dot = Extents.of(spec, tiling), tiling.dot
    half = dot.lanes // 2
    step = te.reduce_axis((0, tiling.chain), "step")

    def chained(n: Any, h: Any, ry: Any, rt: Any, c: Any, w: Any, pair: Any, odd: Any) -> Any:
        at, block = c * tiling.chain + step, pair // half
        lane = pair % half * 2 + odd
        index = value(n, h, w, 0, ry, rt, at), weight[block, ry, rt, at, lane, 0]
        return te.sum(count(*index, table), axis=step)

    chains = e.steps // tiling.chain
    shape = (spec.batch, e.rows, spec.run_rows, e.taps, chains, e.columns, e.outputs // 2, 2)
    part = te.compute(shape, chained, name="part")
    ry = te.reduce_axis((0, spec.run_rows), "ry")
    rt = te.reduce_axis((0, e.taps), "rt")
    chain = te.reduce_axis((0, chains), "chain")

    def total(n: Any, h: Any, w: Any, o: Any) -> Any:
        pair, odd = o // dot.lanes * half + o % half, o % dot.lanes // half
        wide = part[n, h, ry, rt, chain, w, pair, odd].astype(dot.accumulator_dtype)
        return te.sum(wide, axis=[ry, rt, chain])

    return te.compute((spec.batch, e.rows, e.columns, e.outputs), total, name="acc")


def border(spec: Conv2DSpec, tiling: Tiling, h: Any, w: Any) -> tuple[Any, Any]:
    """Return the classes of the row and the column of an output pixel."""
    if tiling.flat:
        h, w = w // spec.out_width, w % spec.out_width
    found = []
    for axis, position, extent in ((0, h, spec.out_height), (1, w, spec.out_width)):
        before, after = _borders(spec, axis)
        if before + after >= extent:
            found.append(position)
            continue
        beyond = position - (extent - 1 - after)
        inner = te.min(position, before) if before else 0
        found.append(inner + (te.max(beyond, 0) if after else 0))
    return found[0], found[1]


# -- packing ---------------------------------------------------------------------------------------


def _borders(spec: Conv2DSpec, axis: int) -> tuple[int, int]:
    """Return how many first and last rows (columns) of the output read padding along an axis."""
    before = spec.padding[axis]
    size, extent = (spec.height, spec.out_height) if axis == 0 else (spec.width, spec.out_width)
    window = (spec.kernel[axis] - 1) * spec.dilation[axis]
    last = (size - 1 + before - window) // spec.strides[axis]  # that reads nothing behind
    first = -(-before // spec.strides[axis])
    return min(first, extent), min(max(extent - 1 - last, 0), extent)


def _representatives(spec: Conv2DSpec, axis: int) -> npt.NDArray[np.int64]:
    """Return one output row (column) of each class."""
    extent = spec.out_height if axis == 0 else spec.out_width
    before, after = _borders(spec, axis)
    first, last = (before + 1, after) if before + after < extent else (extent, 0)
    return np.concatenate([np.arange(first), np.arange(extent - last, extent)])


def bias_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, int, int]:
    """Return the shape of the bias: classes of rows, classes of columns, outputs."""
    rows, columns = (_representatives(spec, axis).size for axis in (0, 1))
    return rows, columns, Extents.of(spec, tiling).outputs


def pack_bias(
    bias: npt.NDArray[np.int32], weight: npt.NDArray[np.int8], spec: Conv2DSpec, tiling: Tiling
) -> npt.NDArray[np.int32]:
    """Return the bias of every class: equation (2) of the module, without M.

    Parameters
    ----------
    bias : int32 array of shape (O,)
        What is added to the sum of ``q w``, q the input's bytes.
    weight : int8 array of shape (O, kh, kw, C)

    Notes
    -----
    ``sum q w = sum x w + 128 sum w``, padding included. Sums wrap around at 32 bits and so does the
    kernel's subtraction of 2 M: the accumulator is exact where it fits them.
    """
    inside = []
    for axis, size in ((0, spec.height), (1, spec.width)):
        first = _representatives(spec, axis) * spec.strides[axis] - spec.padding[axis]
        read = first[:, None] + np.arange(spec.kernel[axis]) * spec.dilation[axis]
        inside.append(((read >= 0) & (read < size)).astype(np.int64))
    taps = weight.sum(axis=3, dtype=np.int64)
    rows = inside[0] if skips_rows(spec, tiling) else np.ones_like(inside[0])
    computed = np.einsum("ay,oyx->ao", rows, taps)[:, None]
    with_image = np.einsum("ay,bx,oyx->abo", *inside, taps)
    products = rows.sum(axis=1)[:, None, None] * spec.row
    whole = bias.astype(np.int64) + BINARY_MIDDLE * taps.sum(axis=(1, 2))
    padding = (spec.input_zero_point - BINARY_MIDDLE) * (taps.sum(axis=(1, 2)) - with_image)
    classes = whole + products + (computed - with_image) + padding
    packed = np.zeros(bias_shape(spec, tiling), np.int32)
    packed[..., : len(bias)] = classes.astype(np.int32)
    return packed


def bits_of(values: npt.NDArray[Any], dot: DotProduct) -> npt.NDArray[Any]:
    """Return which values are positive, ``dot.values`` neighbours of the last axis an element."""
    positive = (values > 0).reshape(*values.shape[:-1], -1, dot.values)
    places = 1 << np.arange(dot.values, dtype=np.int64)
    return np.asarray((positive @ places).astype(dot.weight_dtype))
