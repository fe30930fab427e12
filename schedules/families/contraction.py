"""What families of kernels are asked about: convolutions and dense layers, as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from tvmquant.formats import INT8, UINT8, Format
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct
from tvmquant.schedules.weight_layout import WeightLayout

Array = npt.NDArray[Any]

CONV2D = "conv2d"
CONV2D_TRANSPOSE = "conv2d_transpose"
DENSE = "dense"


@dataclass(frozen=True)
class Contraction:
    """A convolution, a transposed convolution or a dense layer, channels last.

    Parameters
    ----------
    operator : str
        ``"conv2d"``, ``"conv2d_transpose"`` or ``"dense"``.
    batch, height, width, channels : int
        Extents of the input; of a dense layer its rows, 1, 1 and its inputs.
    outputs : int
        Output channels.
    kernel, strides, dilation, output_padding : (int, int)
    padding : (top, left, bottom, right)
    groups : int
    residual : bool
        Whether a second term is added before the result is stored.
    """

    operator: str
    batch: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1
    residual: bool = False

    @property
    def pixels(self) -> int:
        """Positions at which the whole kernel is multiplied: of the output, or of the input."""
        if self.operator == CONV2D_TRANSPOSE:
            return self.batch * self.height * self.width
        extents = ((self.height, self.padding[::2]), (self.width, self.padding[1::2]))
        windows = zip(extents, self.kernel, self.strides, self.dilation, strict=True)
        return self.batch * math.prod(
            (extent + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
            for (extent, pads), kernel, stride, dilation in windows
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates, those with padding included."""
        window = math.prod(self.kernel) * self.channels // self.groups
        return self.pixels * window * self.outputs


@dataclass(frozen=True)
class Vectors:
    """Multipliers, offsets and shifts of an `Epilogue`, one per output channel, and its table.

    Parameters
    ----------
    multiplier, offset, shift : array (O,)
        Of the type that the epilogue computes in; the offset is folded.
    residual : array (O,), optional
        Multiplier of the second term.
    negative : array (O,), optional
        Multiplier of negative accumulators.
    table : array (256,), optional
    """

    multiplier: Array
    offset: Array
    shift: Array
    residual: Array | None = None
    negative: Array | None = None
    table: Array | None = None

    def repeated(self, times: int) -> Vectors:
        """Return the vectors of ``times`` as many channels."""

        def tiled(vector: Array | None) -> Array | None:
            return None if vector is None else np.tile(vector, times)

        return Vectors(
            np.tile(self.multiplier, times), np.tile(self.offset, times),
            np.tile(self.shift, times), tiled(self.residual), tiled(self.negative), self.table,
        )  # fmt: skip

    def padded(self, length: int) -> list[Array]:
        """Return the vectors with zeros up to a length, as a kernel takes them.

        Beyond the channels shifts are 1. The second term itself comes before its multiplier.
        """
        found = [padded(v, length) for v in (self.multiplier, self.offset, self.shift)]
        found[2] = np.maximum(found[2], 1)
        found += [padded(v, length) for v in (self.residual, self.negative) if v is not None]
        return found


def padded(vector: Array, length: int) -> Array:
    """Return a vector with zeros up to a length."""
    return np.pad(vector, (0, length - vector.size))


@dataclass(frozen=True)
class Layer:
    """A contraction with its numbers.

    Parameters
    ----------
    contraction : Contraction
    name : str
        Of the layer, for errors and tuned tilings.
    weight : int8 array (O, kh, kw, C / groups)
        Without the multipliers of its groups.
    bias : int32 array (O,)
    weight_format, activation_format : Format
    multiplier : int8 array, optional
        Of every weight, where there are groups.
    input_zero_point, input_qmin, input_qmax : int
    epilogue : Epilogue or None
        None stores the accumulator.
    vectors : Vectors or None
    residual_dtype : str
    """

    contraction: Contraction
    name: str
    weight: Array
    bias: Array
    weight_format: Format = INT8
    activation_format: Format = UINT8
    multiplier: Array | None = None
    input_zero_point: int = 0
    input_qmin: int = 0
    input_qmax: int = 255
    epilogue: Epilogue | None = None
    vectors: Vectors | None = None
    residual_dtype: str = "uint8"

    def finished(self, epilogue: Epilogue, vectors: Vectors, residual_dtype: str) -> Layer:
        """Return the layer with an epilogue."""
        return replace(self, epilogue=epilogue, vectors=vectors, residual_dtype=residual_dtype)

    @property
    def whole_weight(self) -> Array:
        """The weight times its groups' multipliers, for kernels that do not scale groups."""
        return self.weight if self.multiplier is None else self.weight * self.multiplier

    @property
    def whole_bits(self) -> int:
        """Bits that the values of `whole_weight` fit."""
        return self.weight_format.bits if self.multiplier is None else INT8.bits


@dataclass(frozen=True)
class Weight:
    """A weight as a kernel reads it, among the arguments of its call.

    Parameters
    ----------
    packed : array
        Of signed integers, or of uint8: two of 4 bits in a byte (`schedules.conv2d_packing`).
    bits : int
        That its values fit.
    held : Format, optional
        Of its elements, where these are not the layer's weights.
    layout : WeightLayout, optional
        Where it has each of the layer's weights, where that can be told.
    channels : (int, int), optional
        Axes that count its output channels: blocks, and those of a block.
    """

    packed: Array
    bits: int
    held: Format | None = None
    layout: WeightLayout | None = None
    channels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Operand:
    """A tensor that the caller of a kernel fills in: the input or the second term.

    Parameters
    ----------
    name : str
        ``"input"`` or ``"residual"``.
    shape : tuple of int, optional
        In which the kernel takes it, where that is another view.
    bits : DotProduct, optional
        Which reads its bits: `schedules.pack_bits` makes them.
    planes : int
        How many bits it has.
    """

    name: str
    shape: tuple[int, ...] | None = None
    bits: DotProduct | None = None
    planes: int = 1


@dataclass(frozen=True)
class Lowered:
    """A kernel and what it is called with.

    Parameters
    ----------
    kernel : PrimFunc
    arguments : tuple of Operand, Weight or array
        Without the output.
    shape : tuple of int
        Of the output.
    view, axes : tuple of int
        The output's dimensions are then to be laid out in the order ``axes`` of this view of it;
        empty where they lie as they should.
    """

    kernel: tirx.PrimFunc
    arguments: tuple[Operand | Weight | Array, ...]
    shape: tuple[int, ...]
    view: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
