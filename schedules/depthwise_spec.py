"""What a depthwise convolution computes, how its loops are cut, and how its operands are packed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct, taps
from tvmquant.schedules.loops import round_up

# Elements of the padded rows that are copied together.
COPIED = 32


@dataclass(frozen=True)
class DepthwiseConv2DSpec:
    """Static parameters of a depthwise convolution, NHWC.

    Parameters
    ----------
    batch, height, width, channels : int
        Extents of the input.
    multiplier : int
        Output channels per input channel.
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    input_zero_point : int
        Value of the padding.
    epilogue : Epilogue or None
        None stores the int32 accumulator.
    residual_dtype : str
        Type of the epilogue's residual.
    """

    batch: int
    height: int
    width: int
    channels: int
    multiplier: int = 1
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    input_zero_point: int = 0
    epilogue: Epilogue | None = None
    residual_dtype: str = "uint8"

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.channels * self.multiplier

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        window = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[2] - window) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        window = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[1] + self.padding[3] - window) // self.strides[1] + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer."""
        window = self.kernel[0] * self.kernel[1]
        return self.batch * self.out_height * self.out_width * self.outputs * window


@dataclass(frozen=True)
class Tiling:
    """How the loops are cut; every number is explained by the module's strategy.

    Parameters
    ----------
    dot : DotProduct
        Instruction; its group is the number of window rows multiplied at once.
    vectors : int
        Vectors of channels multiplied by one unrolled step.
    row_tile : int
        Output rows that share their input rows.
    column_tile : int
        Output pixels of one row accumulated together in registers.
    row_block : int
        Tiles of output rows of one task.
    channel_block : int
        Steps of channels of one task.
    parallel : bool
        Whether the layer is worth more than one thread.
    """

    dot: DotProduct
    vectors: int
    row_tile: int
    column_tile: int
    row_block: int
    channel_block: int
    parallel: bool = True

    @property
    def lanes(self) -> int:
        """Channels of one unrolled step."""
        return self.dot.lanes * self.vectors


def copies(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return how many output rows in turn have a copy of the weights of their own.

    Rows share interleaved groups of input rows, so each starts somewhere within a group: with
    stride 1 and groups of two, those of even and of odd rows are two copies; with stride 2, one.
    """
    cycle = tiling.dot.group // math.gcd(spec.strides[0], tiling.dot.group)
    return tiling.row_tile if tiling.row_tile % cycle else cycle


def pairs_along(spec: DepthwiseConv2DSpec, tiling: Tiling) -> bool:
    """Whether the last row of a window, left over by pairs of rows, comes in pairs of columns."""
    pairs = tiling.dot.tensorized and tiling.dot.group == 2 and copies(spec, tiling) == 1
    odd = spec.kernel[0] > 1 and spec.kernel[0] % 2 == 1
    return pairs and odd and spec.dilation[1] == 1 and finishes(spec, tiling)


def row_groups(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return how many groups of input rows an output row takes, its zero weights included."""
    if pairs_along(spec, tiling):
        return spec.kernel[0] // 2
    shift = (copies(spec, tiling) - 1) * spec.strides[0]
    return -(-(spec.kernel[0] + shift) // tiling.dot.group)


def window_products(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return how many dot products a vector of outputs takes."""
    along = -(-spec.kernel[1] // 2) if pairs_along(spec, tiling) else 0
    return row_groups(spec, tiling) * spec.kernel[1] + along


def rows_read(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return how many input rows are read by output rows that begin in the same one."""
    if pairs_along(spec, tiling):
        return spec.kernel[0]
    return (row_groups(spec, tiling) * tiling.dot.group - 1) * spec.dilation[0] + 1


def padded_outputs(spec: DepthwiseConv2DSpec, tiling: Tiling) -> int:
    """Return the length of the per-channel vectors the kernel takes (zeros beyond the channels)."""
    return round_up(spec.outputs, tiling.lanes * tiling.channel_block)


def finishes(spec: DepthwiseConv2DSpec, tiling: Tiling) -> bool:
    """Whether steps of channels are finished as a whole, before they are stored."""
    residual = spec.epilogue is not None and spec.epilogue.residual
    return padded_outputs(spec, tiling) == spec.outputs and not residual


def widened(spec: DepthwiseConv2DSpec, tiling: Tiling) -> bool:
    """Whether rows are interleaved as words, which changes the order of channels in a step."""
    widens = taps.widens(tiling.dot, tiling.vectors)
    return widens and finishes(spec, tiling)


def pack_vector(
    vector: npt.NDArray[Any], spec: DepthwiseConv2DSpec, tiling: Tiling
) -> npt.NDArray[Any]:
    """Pack a vector of `padded_outputs` entries, one per channel, in the kernel's order."""
    if not widened(spec, tiling):
        return vector
    blocks = vector.reshape(-1, tiling.lanes)
    return np.ascontiguousarray(blocks[:, channel_order(tiling)].reshape(-1))


def channel_order(tiling: Tiling) -> list[int]:
    """Return the channel of each lane of a step whose rows are interleaved as words."""
    return [taps.channel(i, tiling.dot) for i in range(tiling.lanes)]


# Axes of what `pack_weight` returns that count output channels.
CHANNELS = (0, 3)


def pack_weight(
    weight: npt.NDArray[np.int8], spec: DepthwiseConv2DSpec, tiling: Tiling
) -> npt.NDArray[Any]:
    """Pack a weight for the kernel.

    Parameters
    ----------
    weight : int8 array of shape (O, kh, kw)

    Returns
    -------
    array of shape (O' / lanes, copies, dot products, lanes, group)
        Of the dot product's weight type: groups of rows, column by column, then pairs of columns
        of a row left over. In copy i, the window is moved down by i * stride rows of zeros. Zeros
        also where extents are padded. Lanes are in the order of `pack_vector`.
    """
    lanes, group = tiling.lanes, tiling.dot.group
    outputs, _, kernel_w = weight.shape
    padded, groups, count = (f(spec, tiling) for f in (padded_outputs, row_groups, copies))
    down = np.zeros((padded, count, groups * group, kernel_w), tiling.dot.weight_dtype)
    along = pairs_along(spec, tiling)
    for copy in range(count):
        first = copy * spec.strides[0]
        rows = weight[:, :-1] if along else weight
        down[:outputs, copy, first : first + rows.shape[1]] = rows
    down = down.reshape(padded, count, groups, group, kernel_w).transpose(0, 1, 2, 4, 3)
    packed = [down.reshape(padded, count, -1, group)]
    if along:
        last = np.pad(weight[:, -1], ((0, padded - outputs), (0, kernel_w % 2)))
        packed.append(last.reshape(padded, count, -1, group).astype(down.dtype))
    blocks = np.concatenate(packed, axis=2).reshape(padded // lanes, lanes, count, -1, group)
    if widened(spec, tiling):
        blocks = blocks[:, channel_order(tiling)]
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1, 4))
