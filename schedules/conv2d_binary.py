"""Convolutions of bits: those of input and weight that differ are counted.

*Input.* The network's tensor holds bytes q: 127 for -1 and 129 for +1, or integers of P bits:

    q = a + d sum_p 2^p b_p,    b_p in {0, 1};    a, d = 127, 2 (P = 1) or 0, 1                  (2)

The kernel is given the bits (`schedules.pack_bits`), each plane p of them by itself.

*Weights* are -1 and +1, or s = 2 planes of these whose mean they are, so that -1, 0 and +1 are. Of
K products let M_pj be those of the planes p and j that differ; sum b_p w_j = (K - 2 M_pj + sum w_j)
/ 2, and so

    sum q w = a sum w + d (2^P - 1) (K + sum w) / 2 - d / s sum_pj 2^p M_pj                      (3)

Only the counts depend on the input. Each pair of planes has accumulators of its own, side by side
in the register tile: a vector of weights is read once for all planes of the input, an element of
the input once for all of the weights. (Planes as one more reduction would double the sums between
two of them, and read the weights anew.)

*Padding* is the zero point. Where it is no value of (2), such as 128 of signs, it is padded with
zero bits, a. A tap that reads padding adds a w in place of zero_point w, for each of its weights w;
that is the same for all input values, and the bias makes up for it: for those taps that are
computed. All are, or all but those of rows in the padding (`skip_padding`), whose zero_point w the
bias adds as well. So it depends on an output pixel's distance to the border. Pixels of equal bias
are a *class*, of rows and of columns (`class_bias`).

*Counts looked up* (`isa.binary_stages`) are added up in bytes: at most 4 a step, so `LONGEST_COUNT`
steps fit 8 bits. They are widened into 16 bits, which hold every count of a window of less than
2**16 products (`countable`); larger ones are counted word by word, in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx

from tvmquant.formats import BINARY_MIDDLE
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.isa import INDEX_BITS, DotProduct
from tvmquant.schedules.isa.binary_stages import ENTRIES, count, counts, shifted
from tvmquant.schedules.skip_padding import skips_rows

# Steps of at most four differing bits that an 8-bit sum holds.
LONGEST_COUNT = 255 // INDEX_BITS

__all__ = [
    "LONGEST_COUNT",
    "bias_shape",
    "bits_of",
    "border",
    "class_bias",
    "countable",
    "counted",
    "counted_words",
    "counts",
    "interleaved",
    "padding_bits",
    "subtracted",
    "table_placeholder",
    "weight_bits",
]


def countable(spec: Conv2DSpec, dot: DotProduct) -> bool:
    """Whether the accumulators of a dot product hold every count of a window."""
    window = spec.kernel[0] * spec.row
    return window <= int(np.iinfo(dot.accumulator_dtype).max)


# -- blocks ----------------------------------------------------------------------------------------


def table_placeholder() -> te.Tensor:
    """Return the argument in which `counts` are looked up."""
    return te.placeholder((ENTRIES,), "uint8", name="table_of_counts")


def padding_bits(spec: Conv2DSpec, dot: DotProduct, plane: Any) -> Any:
    """Return the element of the input that pads a plane."""
    code, dtype = _padding_code(spec), dot.input_dtype
    if code == 0:
        return tirx.const(0, dtype)
    ones = shifted(bits_of(np.ones(dot.values), dot), dot).item()
    return (tirx.const(code, dtype) >> plane.astype(dtype) & 1) * tirx.const(ones, dtype)


def counted_words(value: Any, weight: te.Tensor, spec: Conv2DSpec, tiling: Tiling) -> te.Tensor:
    """Define the accumulators, in words, as one sum over the window; parameters as below."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    ry = te.reduce_axis((0, spec.run_rows), "ry")
    rt = te.reduce_axis((0, e.taps), "rt")
    rk = te.reduce_axis((0, e.run), "rk")

    def total(n: Any, h: Any, w: Any, plane: Any, o: Any) -> Any:
        of_input, block = _place(spec, plane, o // dot.lanes)
        word = value(n, h, w, o, ry, rt, rk, of_input)
        differing = tirx.popcount(word ^ weight[block, ry, rt, rk, o % dot.lanes, 0])
        return te.sum(differing.astype(dot.accumulator_dtype), axis=[ry, rt, rk])

    return te.compute((spec.batch, e.rows, e.columns, spec.planes, e.outputs), total, name="acc")


def counted(
    value: Any, weight: te.Tensor, table: te.Tensor, spec: Conv2DSpec, tiling: Tiling
) -> te.Tensor:
    """Define the accumulators as sums of chains in 8 bits, each of ``tiling.chain`` steps.

    Parameters
    ----------
    value : function of (n, h, w, o, ry, rt, k, plane)
        Element k of the run that output (h, w, o) reads with its window's row ry and tap rt.
    weight : Tensor of `conv2d_packing.weight_shape`
        Even bytes of a vector hold the weights of the first half of its outputs, odd ones those of
        the second: so that masks and shifts widen sums into the outputs' order.
    table : Tensor
    """
    e, dot = Extents.of(spec, tiling), tiling.dot
    half = dot.lanes // 2
    step = te.reduce_axis((0, tiling.chain), "step")

    def chained(
        n: Any, h: Any, ry: Any, rt: Any, c: Any, w: Any, plane: Any, pair: Any, odd: Any
    ) -> Any:
        at, lane = c * tiling.chain + step, pair % half * 2 + odd
        of_input, block = _place(spec, plane, pair // half)
        index = value(n, h, w, 0, ry, rt, at, of_input), weight[block, ry, rt, at, lane, 0]
        return te.sum(count(*index, table), axis=step)

    chains = e.steps // tiling.chain
    tile = (e.columns, spec.planes, e.outputs // 2, 2)
    shape = (spec.batch, e.rows, spec.run_rows, e.taps, chains, *tile)
    part = te.compute(shape, chained, name="part")
    ry = te.reduce_axis((0, spec.run_rows), "ry")
    rt = te.reduce_axis((0, e.taps), "rt")
    chain = te.reduce_axis((0, chains), "chain")

    def total(n: Any, h: Any, w: Any, plane: Any, o: Any) -> Any:
        pair, odd = o // dot.lanes * half + o % half, o % dot.lanes // half
        wide = part[n, h, ry, rt, chain, w, plane, pair, odd].astype(dot.accumulator_dtype)
        return te.sum(wide, axis=[ry, rt, chain])

    return te.compute((spec.batch, e.rows, e.columns, spec.planes, e.outputs), total, name="acc")


def _place(spec: Conv2DSpec, plane: Any, block: Any) -> tuple[Any, Any]:
    """Return the plane of the input, and where the block of weights is that it meets."""
    if spec.weight_planes == 1:
        return plane, block
    return plane // spec.weight_planes, block * spec.weight_planes + plane % spec.weight_planes


def subtracted(acc: te.Tensor, spec: Conv2DSpec) -> Callable[..., Any]:
    """Return what equation (3) subtracts at (n, h, w, o); of several planes a block, ``counts``."""
    _, step = _levels(spec)
    if spec.planes == 1:
        return lambda n, h, w, o: step * acc[n, h, w, 0, o].astype("int32")
    plane = te.reduce_axis((0, spec.planes), "plane")
    of_input, _ = _place(spec, plane, 0)

    def total(n: Any, h: Any, w: Any, o: Any) -> Any:
        counts = acc[n, h, w, plane, o].astype("int32")
        place = tirx.const(step // spec.weight_planes, "int32") << of_input
        return te.sum(counts * place, axis=plane)

    n, h, w, _, o = acc.shape
    summed = te.compute((n, h, w, o), total, name="counts")
    return lambda *at: summed[at]


def border(spec: Conv2DSpec, tiling: Tiling, h: Any, w: Any) -> tuple[Any, Any]:
    """Return the classes of the row and the column of an output pixel."""
    if tiling.flat:
        h, w = w // spec.out_width, w % spec.out_width
    found = []
    for axis, position, extent in ((0, h, spec.out_height), (1, w, spec.out_width)):
        before, after = _borders(spec, tiling, axis)
        if before + after >= extent:
            found.append(position)
            continue
        beyond = position - (extent - 1 - after)
        inner = te.min(position, before) if before else 0
        found.append(inner + (te.max(beyond, 0) if after else 0))
    return found[0], found[1]


# -- packing ---------------------------------------------------------------------------------------


def _levels(spec: Conv2DSpec) -> tuple[int, int]:
    """Return the least value of the input, and the steps between two."""
    return (BINARY_MIDDLE - 1, 2) if spec.input_planes == 1 else (0, 1)


def _padding_code(spec: Conv2DSpec) -> int:
    """Return the code that pads: of the zero point, or 0 where that has none."""
    least, step = _levels(spec)
    code, rest = divmod(spec.input_zero_point - least, step)
    return code if rest == 0 and 0 <= code < 1 << spec.input_planes else 0


def _padded_with(spec: Conv2DSpec) -> int:
    """Return the value of the input that pads."""
    least, step = _levels(spec)
    return least + step * _padding_code(spec)


def _borders(spec: Conv2DSpec, tiling: Tiling, axis: int) -> tuple[int, int]:
    """Return how many first and last rows (columns) of the output have another bias.

    They read padding that is not computed, or is not the zero point.
    """
    exact = _padded_with(spec) == spec.input_zero_point
    if exact and not (axis == 0 and skips_rows(spec, tiling)):
        return 0, 0
    before = spec.padding[axis]
    size, extent = (spec.height, spec.out_height) if axis == 0 else (spec.width, spec.out_width)
    window = (spec.kernel[axis] - 1) * spec.dilation[axis]
    last = (size - 1 + before - window) // spec.strides[axis]  # that reads nothing behind
    first = -(-before // spec.strides[axis])
    return min(first, extent), min(max(extent - 1 - last, 0), extent)


def _representatives(spec: Conv2DSpec, tiling: Tiling, axis: int) -> npt.NDArray[np.int64]:
    """Return one output row (column) of each class."""
    extent = spec.out_height if axis == 0 else spec.out_width
    before, after = _borders(spec, tiling, axis)
    first, last = (before + 1, after) if before + after < extent else (extent, 0)
    return np.concatenate([np.arange(first), np.arange(extent - last, extent)])


def bias_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, int, int]:
    """Return the shape of the bias: classes of rows, classes of columns, outputs."""
    rows, columns = (_representatives(spec, tiling, axis).size for axis in (0, 1))
    return rows, columns, Extents.of(spec, tiling).outputs


def class_bias(
    bias: npt.NDArray[np.int32], weight: npt.NDArray[np.int8], spec: Conv2DSpec, tiling: Tiling
) -> npt.NDArray[np.int32]:
    """Return the bias of every class: equation (3) of the module, without the counts.

    Parameters
    ----------
    bias : int32 array of shape (O,)
        What is added to the sum of ``q w``, q the input's bytes.
    weight : int8 array of shape (O, kh, kw, C)

    Notes
    -----
    Sums wrap around at 32 bits and so does the kernel's subtraction of the counts: the accumulator
    is exact where it fits them.
    """
    inside = []
    for axis, size in ((0, spec.height), (1, spec.width)):
        first = _representatives(spec, tiling, axis) * spec.strides[axis] - spec.padding[axis]
        read = first[:, None] + np.arange(spec.kernel[axis]) * spec.dilation[axis]
        inside.append(((read >= 0) & (read < size)).astype(np.int64))
    taps = weight.sum(axis=3, dtype=np.int64)
    rows = inside[0] if skips_rows(spec, tiling) else np.ones_like(inside[0])
    computed = np.einsum("ay,oyx->ao", rows, taps)[:, None]
    with_image = np.einsum("ay,bx,oyx->abo", *inside, taps)
    products = rows.sum(axis=1)[:, None, None] * spec.row
    least, step = _levels(spec)
    halves = step * ((1 << spec.input_planes) - 1) * (products + computed)
    padded = (spec.input_zero_point - _padded_with(spec)) * (computed - with_image)
    skipped = spec.input_zero_point * (taps.sum(axis=(1, 2)) - computed)
    classes = bias.astype(np.int64) + least * computed + halves // 2 + padded + skipped
    packed = np.zeros(bias_shape(spec, tiling), np.int32)
    packed[..., : len(bias)] = classes.astype(np.int32)
    return packed


def weight_bits(
    weight: npt.NDArray[np.int8], spec: Conv2DSpec, dot: DotProduct
) -> list[npt.NDArray[Any]]:
    """Return the elements of a weight, of each plane: zeros are +1 in the second only."""
    planes = [weight > 0, weight >= 0][: spec.weight_planes]
    return [bits_of(plane, dot) for plane in planes]


def bits_of(values: npt.NDArray[Any], dot: DotProduct) -> npt.NDArray[Any]:
    """Return which values are positive, ``dot.values`` neighbours of the last axis an element."""
    positive = (values > 0).reshape(*values.shape[:-1], -1, dot.values)
    places = 1 << np.arange(dot.values, dtype=np.int64)
    return np.asarray((positive @ places).astype(dot.weight_dtype))


def interleaved(planes: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the blocks of all planes, those of the same outputs together."""
    blocks = np.stack(planes, axis=1)
    return np.ascontiguousarray(blocks.reshape(-1, *blocks.shape[2:]))
