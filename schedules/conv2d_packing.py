"""Weights as the kernels of `schedules.conv2d` read them, and what is proven about them.

Four-bit weights are stored as ``w + 8`` two in a byte: the low nibble belongs to an even step of
the dot product, the high nibble to the odd step after it, so that one byte vector unpacks to the
operands of two steps whatever the register tile.

With ``w_group = G`` the effective weight is ``w4 * m``, m an integer for G neighbours of a run:
``sum x w = sum over groups of m * (sum x w4)``, exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.errors import QuantizationError
from tvmquant.schedules.conv2d_binary import class_bias, interleaved, weight_bits
from tvmquant.schedules.conv2d_spec import Conv2DSpec, Extents, Tiling
from tvmquant.schedules.loops import round_up
from tvmquant.schedules.weight_layout import ELEMENT, OUTPUT, WINDOW, Axis, WeightLayout

# Bits that kernels read a weight in.
CONTAINERS = (4, 8)
# Axes of `weight_shape` that count output channels.
CHANNELS = (0, 4)
# The greatest 4-bit weight, and what is added to them in storage
LARGEST = 7
BIAS = 8
# Longer chains no longer pay: widening then takes less than one instruction in a hundred.
LONGEST_CHAIN = 128


def container_of(bits: int) -> int:
    """Return the bits in which kernels read weights of so many: the next that there are."""
    return next(container for container in CONTAINERS if container >= bits)


def weight_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, ...]:
    """Return the shape of the weight, as stored or (8 bits) as multiplied."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    steps = -(-e.run // (dot.piece * (8 // spec.w_bits)))
    blocks = e.outputs // dot.lanes * spec.weight_planes
    return (blocks, spec.run_rows, e.taps, steps, dot.lanes, dot.piece)


def scale_shape(spec: Conv2DSpec, tiling: Tiling) -> tuple[int, ...]:
    """Return the shape of the groups' factors: (O' / lanes, rows, groups of a run, lanes)."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    return (e.outputs // dot.lanes, spec.run_rows, -(-e.run // spec.w_group), dot.lanes)


def pack_weight(weight: npt.NDArray[Any], spec: Conv2DSpec, tiling: Tiling) -> npt.NDArray[Any]:
    """Pack an OHWI weight for the kernel.

    Parameters
    ----------
    weight : int8 or float32 array of shape (O, kh, kw, C / groups)
        In [-7, 7] for ``w_bits`` 4; with ``w_group`` without the multipliers. Of `binary` layers -1
        and 1, and with ``weight_planes`` 2 also 0.

    Returns
    -------
    array of `weight_shape`: (O' / lanes, rows, taps, steps, lanes, group)
        Of the dot product's weight type, zeros where extents are padded. For ``w_bits`` 4: uint8
        with half as many steps, each byte of two. Of `binary` layers bits: words, or indices in the
        order of `conv2d_binary.counted`, of each block those of one plane after the other.
    """
    runs = _runs(weight, spec)
    if spec.binary:
        planes = weight_bits(runs, spec, tiling.dot)
        return interleaved([_pack_runs(bits, spec, tiling) for bits in planes])
    return _pack_runs(runs, spec, tiling)


def _pack_runs(runs: npt.NDArray[Any], spec: Conv2DSpec, tiling: Tiling) -> npt.NDArray[Any]:
    """Pack weights of shape (O, rows, taps, run)."""
    e, dot = Extents.of(spec, tiling), tiling.dot
    outputs, rows = runs.shape[:2]
    length = round_up(e.run, dot.piece * (8 // spec.w_bits))
    packed = np.zeros((e.outputs, rows, e.taps, length), dot.weight_dtype)
    packed[:outputs, :, :, : runs.shape[3]] = runs
    blocks = packed.reshape(
        e.outputs // dot.lanes, dot.lanes, rows, e.taps, length // dot.piece, dot.piece
    ).transpose(0, 2, 3, 4, 1, 5)
    if dot.looks_up:  # even bytes of the first half of the outputs, odd ones of the second
        blocks = blocks.reshape(*blocks.shape[:4], 2, -1).swapaxes(4, 5).reshape(blocks.shape)
    if spec.w_bits == 4:
        nibbles = (blocks + BIAS).astype(np.uint8)
        blocks = nibbles[:, :, :, 0::2] | (nibbles[:, :, :, 1::2] << 4)
    return np.ascontiguousarray(blocks)


def weight_layout(spec: Conv2DSpec, tiling: Tiling) -> WeightLayout:
    """Return where `pack_weight` puts each number; of 4 bits the lower half of a byte is first.

    Of layers that are not `binary`.
    """
    e, dot = Extents.of(spec, tiling), tiling.dot
    lanes, group = dot.lanes, dot.piece
    halves = 8 // spec.w_bits
    within = [Axis(OUTPUT, lanes), Axis(ELEMENT, group)]
    if dot.looks_up:
        within = [Axis(OUTPUT, lanes // 2), Axis(ELEMENT, group), Axis(OUTPUT, 2, lanes // 2)]
    axes = (
        Axis(OUTPUT, e.outputs // lanes, lanes),
        Axis(WINDOW, spec.run_rows * e.taps),
        Axis(ELEMENT, -(-e.run // (halves * group)), halves * group),
        *within,
        *((Axis(ELEMENT, halves, group),) if halves > 1 else ()),
    )
    return WeightLayout(spec.outputs, spec.run_rows * e.taps, spec.run, axes)


def pack_bias(
    bias: npt.NDArray[np.int32], weight: npt.NDArray[np.int8], spec: Conv2DSpec, tiling: Tiling
) -> npt.NDArray[np.int32]:
    """Return the bias as the kernel adds it, with zeros up to the padded outputs.

    Parameters
    ----------
    bias : int32 array of shape (O,)
        What is added to the sum of ``q w``, q the input's bytes.
    weight : int8 array of shape (O, kh, kw, C / groups)
        As it is multiplied, with the multipliers of groups.

    Notes
    -----
    Where inputs are multiplied as signed bytes, ``sum q w = sum (q - 128) w + 128 sum w``. Sums
    wrap around at 32 bits.
    """
    if spec.binary:
        return class_bias(bias, weight, spec, tiling)
    offset = tiling.dot.input_offset
    if offset:
        sums = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.int64)
        bias = (bias + offset * sums).astype(np.int32)
    return np.pad(bias, (0, Extents.of(spec, tiling).outputs - len(bias)))


def pack_scale(
    scale: npt.NDArray[np.uint8], spec: Conv2DSpec, tiling: Tiling
) -> npt.NDArray[np.uint8]:
    """Pack the groups' factors, (O, rows, groups of a run), to `scale_shape`; ones where padded."""
    blocks, rows, count, lanes = scale_shape(spec, tiling)
    packed = np.ones((blocks * lanes, rows, count), np.uint8)
    packed[: scale.shape[0], :, : scale.shape[2]] = scale
    return np.ascontiguousarray(packed.reshape(blocks, lanes, rows, count).transpose(0, 2, 3, 1))


def _runs(weight: npt.NDArray[Any], spec: Conv2DSpec) -> npt.NDArray[Any]:
    """Return the weight as (O, rows, taps, run)."""
    return weight.reshape(len(weight), spec.run_rows, -1, spec.run)


def check_narrow(weight: npt.NDArray[np.int8], layer: str) -> None:
    """Make sure that weights fit 4 bits.

    Raises
    ------
    QuantizationError
        When one is outside [-8, 7].
    """
    if weight.min(initial=0) < -BIAS or weight.max(initial=0) > LARGEST:
        raise QuantizationError(
            f"layer {layer!r}: weights reach [{weight.min()}, {weight.max()}], 4 bits hold "
            f"[-{BIAS}, {LARGEST}]; quantize the layer with 8-bit weights"
        )


def group_scale(
    multiplier: npt.NDArray[np.int8], spec: Conv2DSpec, layer: str
) -> npt.NDArray[np.uint8]:
    """Return the one multiplier that the weights of each group have.

    Parameters
    ----------
    multiplier : int8 array of shape (O, kh, kw, C)
        Of each weight.
    spec : Conv2DSpec
        `Conv2DSpec.groupable`; ``w_group`` neighbours along each run are a group, the last may be
        shorter.
    layer : str
        Its name, for errors.

    Returns
    -------
    uint8 array of shape (O, rows, ceil(run / w_group))

    Raises
    ------
    QuantizationError
        When a group has several, or one below 1.
    """
    runs = _runs(multiplier, spec)[:, :, 0]
    padding = -runs.shape[2] % spec.w_group
    padded = np.pad(runs, ((0, 0), (0, 0), (0, padding)), mode="edge")
    groups = padded.reshape(*runs.shape[:2], -1, spec.w_group)
    wrong = (groups != groups[..., :1]).any(axis=3) | (groups[..., 0] < 1)
    if wrong.any():
        o, row, index = (int(i[0]) for i in np.nonzero(wrong))
        raise QuantizationError(
            f"layer {layer!r}: weights of group {index} (of {spec.w_group}) in row {row} of output "
            f"channel {o} have no multiplier in common; quantize the layer in groups of "
            f"{spec.w_group}"
        )
    return groups[..., 0].astype(np.uint8)


def provable_chain(
    weight: npt.NDArray[np.int8], spec: Conv2DSpec, qmin: int = 0, qmax: int = 255
) -> int:
    """Return how many sums of two products surely add up in 16 bits.

    Parameters
    ----------
    weight : int8 array of shape (O, kh, kw, C / groups)
        As it is multiplied (with ``w_group``: without the groups' factors).
    qmin, qmax : int
        Range of the input, within [0, 255].

    Returns
    -------
    int
        0 where even one sum may overflow, else a power of two up to `LONGEST_CHAIN`: the fewer
        values, the more layers share a tuned kernel.

    Notes
    -----
    One step adds ``x0 w0 + x1 w1`` to a lane, with x in [qmin, qmax] (padding included), at most

        h = max over neighbours of sum(max(w, 0) qmax + min(w, 0) qmin)

    and at least l, of the opposite signs. Any c of them stay within c [min(l, 0), max(h, 0)].
    """
    qmin, qmax = min(qmin, spec.input_zero_point), max(qmax, spec.input_zero_point)
    runs = _runs(weight, spec).astype(np.int32)
    if runs.shape[3] % 2:
        runs = np.pad(runs, ((0, 0), (0, 0), (0, 0), (0, 1)))
    positive, negative = np.maximum(runs, 0), np.minimum(runs, 0)

    def extreme(up: int, down: int) -> npt.NDArray[np.int32]:
        bound = positive * up + negative * down
        return np.asarray(bound[..., ::2] + bound[..., 1::2])

    highest = int(extreme(qmax, qmin).max(initial=1))
    lowest = int(extreme(qmin, qmax).min(initial=-1))
    chain = min((2**15 - 1) // highest, 2**15 // -lowest, LONGEST_CHAIN)
    return 1 << (chain.bit_length() - 1) if chain else 0
