"""What a convolution computes, how its loops are cut, and the extents that follow from both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tvmquant.run_layout import RunLayout, groups_follow_runs
from tvmquant.schedules.epilogue import Epilogue, FloatEpilogue
from tvmquant.schedules.isa import DotProduct
from tvmquant.schedules.loops import round_up


@dataclass(frozen=True)
class Conv2DSpec:
    """Static parameters of a convolution, NHWC: all that its kernel and its tilings depend on.

    Parameters
    ----------
    batch, height, width, channels : int
        Extents of the input.
    outputs : int
        Output channels.
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    groups : int
    input_zero_point : int
        Value of the padding.
    epilogue : Epilogue, FloatEpilogue or None
        None stores the accumulator.
    residual_dtype : str
        Type of the epilogue's residual.
    dtype : str
        Type of the input: ``"uint8"``, or ``"float32"`` where everything is float32.
    w_bits : int
        8, or 4: weights in [-7, 7], stored two in a byte.
    w_group : int
        Weights of a run that share an integer factor (`conv2d_packing.group_scale`), a multiple
        of 4; 0 for none. Of 4-bit weights only, and only where the layer is `groupable`.
    chain : int
        Sums of two products that may follow each other in a 16-bit accumulator without overflow,
        proven from the weights and the input's range (`conv2d_packing.provable_chain`). 0: not even
        one, or nothing is known.
    binary : bool
        Bits are counted (`schedules.conv2d_binary`): inputs are 127 and 129, or have a few bits,
        and weights are -1 and +1. One group of a multiple of 32 channels.
    input_planes : int
        Bits of `binary` layers' inputs. 1: they are 127 and 129.
    weight_planes : int
        2 where the weights of `binary` layers are -1, 0 and +1; inputs have one bit then.
    """

    batch: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    input_zero_point: int = 0
    epilogue: Epilogue | FloatEpilogue | None = None
    residual_dtype: str = "uint8"
    dtype: str = "uint8"
    w_bits: int = 8
    w_group: int = 0
    chain: int = 0
    binary: bool = False
    input_planes: int = 1
    weight_planes: int = 1

    @property
    def planes(self) -> int:
        """Sums of an output: of each plane of bits."""
        return self.input_planes * self.weight_planes

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
    def pixels(self) -> int:
        """Pixels of the output of one image."""
        return self.out_height * self.out_width

    def out_extents(self, *, flat: bool) -> tuple[int, int]:
        """Return the rows and columns of the output of one image; flat, its pixels are one row."""
        return (1, self.pixels) if flat else (self.out_height, self.out_width)

    @property
    def pointwise(self) -> bool:
        """Whether every output pixel reads exactly the input pixel at its own place."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and self.padding == (0, 0, 0, 0)

    @property
    def merged(self) -> bool:
        """Whether a row of the window is one contiguous run of ``kw * C`` elements."""
        return self.dilation[1] == 1 and self.groups == 1

    @property
    def joined(self) -> bool:
        """Whether the rows of a window are copied together, into one run of ``kh * kw * C``.

        Where the declared layout joins them (`tvmquant.run_layout`), if they are neighbours: that
        pays. Time on Zen 3, by the words of four bytes that each row saves: 7x7x3 to 64 channels
        (46) 0.93, 3x3x3 to 64 (43) 0.90, to 32 (21) 0.93 and 0.96, 5x5x1 to 32 (19) 0.94; 3x3x3 to
        16 (11), which the layout does not join, 1.07.
        """
        shape = (self.outputs, self.channels, *self.kernel)
        near = self.merged and self.dilation[0] == 1
        bytes_ = self.dtype == "uint8" and not self.binary
        return bytes_ and near and RunLayout.of(shape).joined

    @property
    def groupable(self) -> bool:
        """Whether groups of weights follow the runs; see `run_layout.groups_follow_runs`."""
        shape = (self.outputs, self.channels // self.groups, *self.kernel)
        return groups_follow_runs(shape, self.dilation, self.groups)

    @property
    def skips_padding(self) -> bool:
        """Whether products with padding are zero, so that rows of padding need none."""
        padded = any(self.padding) and self.kernel != (1, 1)
        zero = self.input_zero_point == 0 or self.binary
        return padded and zero and not self.joined

    @property
    def row(self) -> int:
        """Elements of a row of the window."""
        return self.kernel[1] * self.channels // self.groups

    @property
    def run_rows(self) -> int:
        """Rows of the window that have runs of their own."""
        return 1 if self.joined else self.kernel[0]

    @property
    def run(self) -> int:
        """Contiguous elements of one reduction: of the window, of a row, or of one tap of it."""
        if not self.merged:
            return self.channels // self.groups
        return self.row * (self.kernel[0] if self.joined else 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer."""
        window = self.kernel[0] * self.row
        return self.batch * self.out_height * self.out_width * self.outputs * window

    @property
    def useful_macs(self) -> int:
        """Multiply-accumulates without those with padding."""
        inside = 1
        for axis, (extent, outputs) in enumerate(
            ((self.height, self.out_height), (self.width, self.out_width))
        ):
            first = np.arange(outputs)[:, None] * self.strides[axis] - self.padding[axis]
            read = first + np.arange(self.kernel[axis]) * self.dilation[axis]
            inside *= int(((read >= 0) & (read < extent)).sum())
        return self.batch * self.outputs * self.channels // self.groups * inside

    def flattened(self) -> Conv2DSpec:
        """Return a pointwise layer as one row of ``batch * height * width`` pixels."""
        if not self.pointwise:
            return self
        return replace(self, batch=1, height=1, width=self.batch * self.height * self.width)


@dataclass(frozen=True)
class Tiling:
    """How the loops are cut; every number is explained by the strategy of `schedules.conv2d`.

    Parameters
    ----------
    dot : DotProduct
        Instruction.
    column_tile : int
        Output pixels of one row accumulated together in registers.
    channel_tile : int
        Vectors of output channels accumulated together in registers.
    row_block, column_block : int
        Output rows and columns of one task; column_block is a multiple of column_tile.
    parallel : str
        ``"rows"`` or ``"channels"``, or ``"none"``: the tasks, cut as for rows, follow each other.
    chain : int
        Steps whose products are added in 16 bits before they are widened to 32, at most the spec's
        chain; 1: each is widened by itself. Above 1 with dot products that saturate only, and with
        those that look counts up, whose sums of 8 bits are widened to 16.
    unpack : str
        Where 4-bit weights become operands: ``"block"``, once for all pixels that a task computes
        of a block of output channels, or ``"registers"``, in every tile.
    flat : bool
        The output pixels of an image count as columns of one row, so that a tile may begin in one
        row and end in the next; ``row_block`` is 1 and a task computes all the columns. (Cut into
        blocks, LLVM computes the pixels' addresses in vectors, and 3x3 takes 1.2 times as long.)
    """

    dot: DotProduct
    column_tile: int
    channel_tile: int
    row_block: int
    column_block: int
    parallel: str
    chain: int = 1
    unpack: str = "block"
    flat: bool = False


@dataclass(frozen=True)
class Extents:
    """Padded extents of a tiled layer.

    Parameters
    ----------
    rows, columns, outputs : int
        Of the output; where it is flat, of its one row.
    taps : int
        Runs of one window row: 1 where it is `Conv2DSpec.merged`.
    pixel : int
        Elements of an input pixel in the padded rows.
    chained : bool
        Products are added in fewer bits first.
    in_registers : bool
        4-bit weights are unpacked in every tile.
    steps : int
        Dot products along one run, padded to whole chains, and to both of a byte.
    run : int
        Elements of one run that they read.
    direct : bool
        The input (binary: its bits) is read in place, without a padded copy.
    skips : bool
        Products with padding are zero and left out: not where inputs are multiplied as signed bytes
        (`DotProduct.input_offset`).
    taps_apart : bool
        The steps of each tap of a run have a loop of their own, around which padding is skipped.
    tap : str
        Name of the loop over taps that the kernel has.
    tap_loop : int
        Its extent.
    """

    rows: int
    columns: int
    outputs: int
    taps: int
    pixel: int
    chained: bool
    in_registers: bool
    steps: int
    run: int
    direct: bool
    skips: bool
    taps_apart: bool
    tap: str
    tap_loop: int

    @classmethod
    def of(cls, spec: Conv2DSpec, tiling: Tiling) -> Extents:
        """Return the extents of a spec cut by a tiling."""
        group = tiling.dot.group
        values = tiling.dot.values
        pairs = tiling.dot.saturates and (tiling.chain > 1 or spec.w_group > 0)
        chained = pairs or tiling.dot.looks_up
        in_registers = spec.w_bits == 4 and tiling.unpack == "registers"
        whole = tiling.chain if chained else 2 if in_registers else 1
        run = spec.run // values
        steps = round_up(-(-run // group), whole)
        per_group = round_up(spec.channels // spec.groups // values, 1 if spec.merged else group)
        height, width = spec.out_extents(flat=tiling.flat)
        rows = round_up(height, tiling.row_block)
        columns = round_up(width, tiling.column_block)
        direct = (
            spec.kernel == (1, 1)
            and spec.padding == (0, 0, 0, 0)
            and (spec.binary or tiling.dot.input_dtype == spec.dtype)
            and (rows, columns) == (height, width)
            and run == steps * group
        )
        taps = 1 if spec.merged else spec.kernel[1]
        padded = spec.padding[1] > 0 or spec.padding[3] > 0
        skips = spec.skips_padding and not tiling.dot.input_offset
        taps_apart = (
            skips
            and padded
            and not chained
            and not spec.binary
            and taps < spec.kernel[1]
            and spec.channels % (group * whole) == 0
        )
        axis = "step_0" if in_registers else "rk_0_0"
        return cls(
            rows=rows,
            columns=columns,
            outputs=round_up(spec.outputs, tiling.dot.lanes * tiling.channel_tile),
            taps=taps,
            pixel=per_group * spec.groups,
            chained=chained,
            in_registers=in_registers,
            steps=steps,
            run=steps * group,
            direct=direct,
            skips=skips,
            taps_apart=taps_apart,
            tap=axis if taps_apart else "rt",
            tap_loop=spec.kernel[1] if taps_apart else taps,
        )
