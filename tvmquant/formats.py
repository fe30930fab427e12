"""Number formats: which integers a tensor holds, how many there are, and how they are stored.

A format is known by its name, which travels as an attribute with whatever holds its integers: from
the ``fake_quant`` of the annotated graph to the manifest. Of uniform steps:

=========== ========================================== =====================================
name        levels                                     of
=========== ========================================== =====================================
``int4``    -7 .. 7: symmetric, 2**bits - 1 of them    weights, and (16 bits) outputs
``uint4``   0 .. 15                                    activations, with a zero point
``int4g32`` as ``int4``, times a multiplier of 1 .. 16 weights in groups of 32 along a run
            that each group has                        (`tvmquant.run_layout`)
``binary``  -1, 1                                      weights
``ubinary`` 127, 129                                   activations
=========== ========================================== =====================================

Integers are computed with in *containers* of 8, 16 or 32 bits. `Format.pack` puts them side by side
without gaps: the i-th of ``b`` bits lies in bits ``i b`` to ``i b + b - 1`` of the bytes, counted
from the lowest bit of the first, and a signed one is stored as ``q + 2**(b - 1)``. The channels of
a weight may be stored at widths of their own (`pack_widths`).
"""

from __future__ import annotations

import functools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tvmquant.errors import QuantizationError

Integers = npt.NDArray[np.integer[Any]]
Bytes = npt.NDArray[np.uint8]

# What weights and activations of layers can have.
LEAST_BITS: Final = 2
MOST_BITS: Final = 8
WIDTHS: Final = range(LEAST_BITS, MOST_BITS + 1)
# Of the network's results, which no layer reads.
OUTPUT_BITS: Final = 16
# Of results whose range is not known but by the sums that make them.
SUM_BITS: Final = 32

# Between the levels of binary activations.
BINARY_MIDDLE: Final = 128

# Weights that may share a multiplier, and the multipliers there are: 7 * 16 fits 8 bits.
GROUP_SIZES: Final = (32, 64, 128)
GROUP_LEVELS: Final = 16

_NAME: Final = re.compile(r"(u?)int([0-9]+)(?:g([0-9]+))?")


class Format(ABC):
    """Which integers a tensor holds.

    Attributes
    ----------
    bits : int
        That each integer takes where they are stored.
    qmin, qmax : int
        Its levels lie within these.
    container : numpy dtype
        In which they are computed with.
    group : int
        Neighbours that share a multiplier; 0 without multipliers.
    """

    bits: int
    group: int

    @property
    @abstractmethod
    def name(self) -> str:
        """Text that `parse` reads."""

    @property
    @abstractmethod
    def qmin(self) -> int:
        """The least level."""

    @property
    @abstractmethod
    def qmax(self) -> int:
        """The greatest level."""

    @property
    @abstractmethod
    def container(self) -> np.dtype[Any]:
        """Type of the integers where they are computed with."""

    @abstractmethod
    def bytes(self, count: int) -> int:
        """Return what so many values take where they are stored, multipliers included."""

    @abstractmethod
    def round(self, steps: npt.NDArray[np.floating[Any]]) -> Integers:
        """Return the nearest levels, ties to even, in the container.

        Parameters
        ----------
        steps : float array, finite
            Real values over the scale, plus the zero point.
        """

    @abstractmethod
    def pack(self, integers: Integers) -> Bytes:
        """Return integers side by side, in C order.

        Raises
        ------
        QuantizationError
            When one does not fit.
        """

    @abstractmethod
    def unpack(self, packed: Bytes, shape: Sequence[int]) -> Integers:
        """Return what `pack` was given, in the container.

        Raises
        ------
        QuantizationError
            When there are fewer or more bytes than a tensor of the shape takes.
        """

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Uniform(Format):
    """Levels at equal steps.

    Parameters
    ----------
    bits : int
        2 to 8, or 16 or 32 where ``signed``.
    signed : bool
        Levels from -(2**(bits - 1) - 1) to 2**(bits - 1) - 1, else from 0 to 2**bits - 1.
    group : int
        32, 64 or 128 neighbours that share a multiplier of 1 to `GROUP_LEVELS`; of signed ones
        whose products with it fit 8 bits. 0 without multipliers.

    Raises
    ------
    QuantizationError
        When there is no such format.

    Examples
    --------
    >>> Uniform(4, signed=True, group=32).name
    'int4g32'
    >>> Uniform(3, signed=True).qmin
    -3
    """

    bits: int
    signed: bool
    group: int = 0

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS and not (self.signed and self.bits in (OUTPUT_BITS, SUM_BITS)):
            raise QuantizationError(
                f"format {self.name}: expected {LEAST_BITS} to {MOST_BITS} bits"
            )
        if not self.group:
            return
        sizes = f"{', '.join(map(str, GROUP_SIZES[:-1]))} or {GROUP_SIZES[-1]}"
        if self.group not in GROUP_SIZES or not self.signed:
            raise QuantizationError(f"format {self.name}: groups hold {sizes} weights")
        if self.qmax * GROUP_LEVELS >= 1 << (MOST_BITS - 1):
            raise QuantizationError(
                f"format {self.name}: weights of {self.bits} bits times a multiplier of up to "
                f"{GROUP_LEVELS} leave 8 bits; groups hold weights of 2 to 4 bits"
            )

    @property
    def name(self) -> str:
        """Such as ``int4g32``."""
        grouped = f"g{self.group}" if self.group else ""
        return f"{'' if self.signed else 'u'}int{self.bits}{grouped}"

    @property
    def qmin(self) -> int:
        """The least level."""
        return -self.qmax if self.signed else 0

    @property
    def qmax(self) -> int:
        """The greatest level."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def container(self) -> np.dtype[Any]:
        """Int8, uint8, int16 or int32."""
        return np.dtype(f"{'' if self.signed else 'u'}int{max(self.bits, 8)}")

    def bytes(self, count: int) -> int:
        """Return what so many values take where they are stored, multipliers included."""
        multipliers = -(-count // self.group) if self.group else 0
        return -(-count * self.bits // 8) + multipliers

    def round(self, steps: npt.NDArray[np.floating[Any]]) -> Integers:
        """Return the nearest levels, ties to even, in the container."""
        rounded: Integers = np.clip(np.rint(steps), self.qmin, self.qmax).astype(self.container)
        return rounded

    def pack(self, integers: Integers) -> Bytes:
        """Return integers side by side, in C order; what is stored may be ``qmin - 1`` too."""
        offset = self._offset
        low, high = -offset, (1 << self.bits) - 1 - offset
        values = np.asarray(integers).reshape(-1)
        if values.size and (values.min() < low or values.max() > high):
            raise QuantizationError(
                f"integers in [{values.min()}, {values.max()}] do not fit the format {self.name}, "
                f"[{low}, {high}]"
            )
        together = self._together
        stored = np.zeros(-(-values.size // together) * together, np.uint64)
        stored[: values.size] = values.astype(np.int64) + offset
        words = np.zeros(stored.size // together, np.uint64)
        for place, column in enumerate(stored.reshape(-1, together).T):
            words |= column << np.uint64(place * self.bits)
        octets = words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : together * self.bits // 8]
        return np.ascontiguousarray(octets).reshape(-1)[: -(-values.size * self.bits // 8)]

    def unpack(self, packed: Bytes, shape: Sequence[int]) -> Integers:
        """Return what `pack` was given, in the container."""
        count, together = math.prod(shape), self._together
        if packed.size != -(-count * self.bits // 8):
            raise QuantizationError(
                f"{packed.size} bytes hold no tensor of shape {tuple(shape)} in the format "
                f"{self.name}, which takes {-(-count * self.bits // 8)}"
            )
        length = together * self.bits // 8
        octets = np.zeros((-(-count // together), 8), np.uint8)
        whole = np.zeros(len(octets) * length, np.uint8)
        whole[: packed.size] = packed
        octets[:, :length] = whole.reshape(-1, length)
        words = octets.view("<u8").astype(np.uint64)
        places = np.arange(together, dtype=np.uint64) * np.uint64(self.bits)
        stored = words >> places & np.uint64((1 << self.bits) - 1)
        integers = stored.reshape(-1)[:count].astype(np.int64) - self._offset
        return integers.astype(self.container).reshape(tuple(shape))

    @property
    def _offset(self) -> int:
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def _together(self) -> int:
        """How many fill whole bytes, and fit one word of 64 bits."""
        return max(1, 64 // max(self.bits, 8))


@dataclass(frozen=True)
class Binary(Format):
    """Two levels, two steps apart: what lies below their middle is the lower one.

    Where the zero point is the middle, as it always is of weights, they are one step below and one
    above 0, which is none of them.

    Parameters
    ----------
    signed : bool
        Levels -1 and 1, of weights; else 127 and 129, of activations.

    Examples
    --------
    >>> Binary(signed=True).round(np.array([-0.3, 0.0, 7.0])).tolist()
    [-1, 1, 1]
    """

    signed: bool
    bits: int = field(default=1, init=False)
    group: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        """``binary`` or ``ubinary``."""
        return "binary" if self.signed else "ubinary"

    @property
    def middle(self) -> int:
        """What lies between the levels."""
        return 0 if self.signed else BINARY_MIDDLE

    @property
    def qmin(self) -> int:
        """The lower level."""
        return self.middle - 1

    @property
    def qmax(self) -> int:
        """The upper level."""
        return self.middle + 1

    @property
    def container(self) -> np.dtype[Any]:
        """Int8 or uint8."""
        return np.dtype("int8" if self.signed else "uint8")

    def bytes(self, count: int) -> int:
        """Return what so many values take where they are stored."""
        return -(-count // 8)

    def round(self, steps: npt.NDArray[np.floating[Any]]) -> Integers:
        """Return the upper level where steps are not below the middle, else the lower one."""
        rounded: Integers = np.where(steps >= self.middle, self.qmax, self.qmin)
        return rounded.astype(self.container)

    def pack(self, integers: Integers) -> Bytes:
        """Return eight in a byte, in C order: a bit is 1 for the upper level."""
        values = np.asarray(integers).reshape(-1)
        upper = values == self.qmax
        if not np.all(upper | (values == self.qmin)):
            raise QuantizationError(
                f"integers in [{values.min()}, {values.max()}] do not fit the format {self.name}, "
                f"which holds {self.qmin} and {self.qmax}"
            )
        return np.packbits(upper, bitorder="little")

    def unpack(self, packed: Bytes, shape: Sequence[int]) -> Integers:
        """Return what `pack` was given, in the container."""
        count = math.prod(shape)
        if packed.size != self.bytes(count):
            raise QuantizationError(
                f"{packed.size} bytes hold no tensor of shape {tuple(shape)} in the format "
                f"{self.name}, which takes {self.bytes(count)}"
            )
        upper = np.unpackbits(packed, count=count, bitorder="little")
        levels: Integers = np.where(upper, self.qmax, self.qmin).astype(self.container)
        return levels.reshape(tuple(shape))


def narrowest(qmin: int, qmax: int, *, signed: bool) -> Uniform:
    """Return the format of the fewest bits whose levels these lie within.

    Raises
    ------
    QuantizationError
        When there is none.

    Examples
    --------
    >>> narrowest(-3, 2, signed=True).name, narrowest(0, 4, signed=False).name
    ('int3', 'uint3')
    """
    for bits in WIDTHS:
        held = Uniform(bits, signed)
        if held.qmin <= qmin and qmax <= held.qmax:
            return held
    raise QuantizationError(f"no format of up to {MOST_BITS} bits holds [{qmin}, {qmax}]")


def channel_widths(integers: Integers) -> npt.NDArray[np.uint8]:
    """Return the least width that each row of integers fits, as it is stored.

    Parameters
    ----------
    integers : int array (channels, ...)
        Within 8 bits.

    Returns
    -------
    uint8 array (channels,)
        2 to 8.

    Examples
    --------
    >>> channel_widths(np.array([[0, 1], [3, -4], [0, 4]])).tolist()
    [2, 3, 4]
    """
    rows = integers.reshape(len(integers), -1).astype(np.int64)
    low, high = rows.min(axis=1, initial=0), rows.max(axis=1, initial=0)
    largest = np.maximum(high, -low - 1)
    ends = np.asarray([1 << (bits - 1) for bits in WIDTHS])
    found: npt.NDArray[np.uint8] = (largest[:, None] >= ends).sum(axis=1).astype(np.uint8)
    return found + np.uint8(LEAST_BITS)


def pack_widths(integers: Integers, widths: npt.NDArray[np.uint8]) -> Bytes:
    """Return integers side by side, each at a width of its own.

    Parameters
    ----------
    integers : int array
    widths : uint8 array like integers
        As of `channel_widths`.
    """
    stored, bits = (np.asarray(a).reshape(-1).astype(np.int64) for a in (integers, widths))
    stored = stored + (1 << (bits - 1))
    ends = np.cumsum(bits)
    whole = np.zeros(int(ends[-1]) if ends.size else 0, np.uint8)
    for place in range(int(bits.max(initial=0))):
        there = bits > place
        whole[(ends - bits)[there] + place] = stored[there] >> place & 1
    return np.packbits(whole, bitorder="little")


@functools.cache
def parse(name: str) -> Format:
    """Return the format of a name.

    Raises
    ------
    QuantizationError
        When it names none.
    """
    if name in (BINARY.name, UBINARY.name):
        return Binary(signed=name == BINARY.name)
    match = _NAME.fullmatch(name)
    if match is None:
        raise QuantizationError(
            f"format {name!r}; expected a form such as int4, int4g32, uint8 or binary"
        )
    unsigned, bits, group = match.groups()
    return Uniform(int(bits), not unsigned, int(group or 0))


BINARY: Final = Binary(signed=True)
UBINARY: Final = Binary(signed=False)
INT8: Final = Uniform(8, signed=True)
UINT8: Final = Uniform(8, signed=False)
INT16: Final = Uniform(OUTPUT_BITS, signed=True)
INT32: Final = Uniform(SUM_BITS, signed=True)
