"""What a transposed convolution computes, phase by phase, and how its operands are packed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct
from tvmquant.schedules.loops import round_up


@dataclass(frozen=True)
class Conv2DTransposeSpec:
    """Static parameters of a transposed convolution, NHWC.

    Parameters
    ----------
    batch, height, width, channels : int
        Extents of the input.
    outputs : int
        Output channels.
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    output_padding : (bottom, right)
    groups : int
    input_zero_point : int
    epilogue : Epilogue or None
        None stores the int32 accumulator.
    residual_dtype : str
        Type of the epilogue's residual.
    """

    batch: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int] = (2, 2)
    strides: tuple[int, int] = (2, 2)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    input_zero_point: int = 0
    epilogue: Epilogue | None = None
    residual_dtype: str = "uint8"

    @property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        extents = (self.height, self.width)
        return (self._out(0, extents), self._out(1, extents))

    def _out(self, i: int, extents: tuple[int, int]) -> int:
        pads = self.padding[i] + self.padding[2 + i]
        reach = self.dilation[i] * (self.kernel[i] - 1)
        return (extents[i] - 1) * self.strides[i] - pads + reach + self.output_padding[i] + 1


@dataclass(frozen=True)
class Tiling:
    """How the loops are cut.

    Parameters
    ----------
    dot : DotProduct
        Instruction.
    column_tile : int
        Output pixels of each phase of the columns accumulated together in registers.
    channel_tile : int
        Vectors of output channels accumulated together in registers.
    fused : bool
        The epilogue is applied tile by tile; else in a second pass.
    parallel : bool
    """

    dot: DotProduct
    column_tile: int
    channel_tile: int
    fused: bool
    parallel: bool = True


@dataclass(frozen=True)
class Phases:
    """The taps of every phase along one axis: (1) of `schedules.conv2d_transpose`.

    Parameters
    ----------
    count : int
        Taps per phase: of the phase that has most.
    taps : list of list of int
        Kernel positions of each phase, in the order of the input positions they meet; -1 where the
        phase has fewer, in front.
    first : list of int
        The input position that the first tap of each phase meets at q = 0.
    step : int
        Distance of the input positions of neighbouring taps.
    shift : int or None
        ``first[phase] - min(first) == (phase + shift) // stride`` for every phase; None where no
        such number exists (dilation).
    """

    count: int
    taps: list[list[int]]
    first: list[int]
    step: int
    shift: int | None

    @classmethod
    def of(cls, spec: Conv2DTransposeSpec, axis: int) -> Phases:
        """Return the phases along the rows (0) or the columns (1)."""
        stride, dilation, pad = spec.strides[axis], spec.dilation[axis], spec.padding[axis]
        step = dilation // math.gcd(stride, dilation)
        met = [
            sorted(
                ((phase + pad - position * dilation) // stride, position)
                for position in range(spec.kernel[axis])
                if (phase + pad - position * dilation) % stride == 0
            )
            for phase in range(stride)
        ]
        count = max(1, *(len(m) for m in met)) if stride > 1 else max(1, len(met[0]))
        last = [m[-1][0] if m else (phase + pad) // stride for phase, m in enumerate(met)]
        taps = [[-1] * (count - len(m)) + [position for _, position in m] for m in met]
        first = [position - (count - 1) * step for position in last]
        offsets = [position - min(first) for position in first]
        affine = [(phase + pad % stride) // stride for phase in range(stride)]
        return cls(count, taps, first, step, pad % stride if offsets == affine else None)


def inputs_per_group(spec: Conv2DTransposeSpec, tiling: Tiling) -> int:
    """Return the input channels of a group, padded to whole dot products."""
    return round_up(spec.channels // spec.groups, tiling.dot.group)


def padded_outputs(spec: Conv2DTransposeSpec, tiling: Tiling) -> int:
    """Return the length of the per-channel vectors the kernel takes (zeros beyond the channels)."""
    return round_up(spec.outputs, tiling.dot.lanes * tiling.channel_tile)


# Axes of what `pack_weight` returns that count output channels.
CHANNELS = (2, 6)


def pack_weight(
    weight: npt.NDArray[np.int8], spec: Conv2DTransposeSpec, tiling: Tiling
) -> npt.NDArray[Any]:
    """Pack an OHWI weight for the kernel.

    Parameters
    ----------
    weight : int8 array of shape (O, kh, kw, C / groups), not flipped

    Returns
    -------
    array of shape (sh, sw, O' / lanes, taps_h, taps_w, C' / group, lanes, group)
        Of the dot product's weight type; zeros where taps or extents are padded.
    """
    rows, columns, dot = Phases.of(spec, 0), Phases.of(spec, 1), tiling.dot
    padded, inputs = padded_outputs(spec, tiling), inputs_per_group(spec, tiling)
    shape = (*spec.strides, padded, rows.count, columns.count, inputs)
    packed = np.zeros(shape, dot.weight_dtype)
    for i, row_taps in enumerate(rows.taps):
        for j, column_taps in enumerate(columns.taps):
            for ty, tx in np.ndindex(rows.count, columns.count):
                if row_taps[ty] >= 0 and column_taps[tx] >= 0:
                    tap = weight[:, row_taps[ty], column_taps[tx]]
                    packed[i, j, : spec.outputs, ty, tx, : weight.shape[3]] = tap
    blocks = packed.reshape(
        *spec.strides,
        padded // dot.lanes,
        dot.lanes,
        rows.count,
        columns.count,
        inputs // dot.group,
        dot.group,
    )
    return np.ascontiguousarray(blocks.transpose(0, 1, 2, 4, 5, 6, 3, 7))


def pack_bias(
    bias: npt.NDArray[np.int32],
    weight: npt.NDArray[np.int8],
    spec: Conv2DTransposeSpec,
    tiling: Tiling,
) -> npt.NDArray[np.int32]:
    """Return the bias of every phase, int32 of shape (sh, sw, O').

    The empty positions of the stretched input hold the zero point: each phase adds it times the sum
    of the weights that the phase does not multiply.
    """
    rows, columns = Phases.of(spec, 0), Phases.of(spec, 1)
    packed = np.zeros((*spec.strides, padded_outputs(spec, tiling)), np.int32)
    sums = weight.astype(np.int64).sum(axis=3)
    for i, row_taps in enumerate(rows.taps):
        for j, column_taps in enumerate(columns.taps):
            met = sums[:, [t for t in row_taps if t >= 0]]
            met = met[:, :, [t for t in column_taps if t >= 0]].sum(axis=(1, 2))
            unmet = sums.sum(axis=(1, 2)) - met
            packed[i, j, : spec.outputs] = bias + spec.input_zero_point * unmet
    return packed
