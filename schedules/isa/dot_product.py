"""What an instruction that multiplies and adds is, in numbers: all that kernels know of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

# Products that one step of a chain adds up, in two sums of 16 bits: `Stage.CHAIN`.
CHAIN_GROUP = 4
# Bits of an index into a table of 16 counts, and of a word whose bits are counted.
INDEX_BITS = 4
WORD_BITS = 32


class Stage(enum.Enum):
    """What one intrinsic does of a dot product; `stages.describe` and `taps.describe` say how.

    A convolution uses `DOT` alone, or, to add up products in 16 bits first, `CHAIN` and then
    `WIDEN` or `SCALE`; with 4-bit weights that it unpacks in registers, those with nibbles.
    `UNPACK_SCALED` makes operands of 4-bit weights in groups. A depthwise convolution uses `TAPS`.

    `COLLECT` adds up the partial sums of lanes (`DotProduct.partial`), or puts those of several
    pixels in order (`DotProduct.rows`).

    Bits are made by `PACK`; where a dot product of them looks counts up, a binary convolution uses
    `COUNT` and then `WIDEN_COUNTS` (`binary_stages`).
    """

    DOT = "dot"
    DOT_NIBBLES = "dot_nibbles"
    CHAIN = "chain"
    CHAIN_NIBBLES = "chain_nibbles"
    WIDEN = "widen"
    SCALE = "scale"
    UNPACK_SCALED = "unpack_scaled"
    COLLECT = "collect"
    TAPS = "taps"
    PACK = "pack"
    COUNT = "count"
    WIDEN_COUNTS = "widen_counts"


@dataclass(frozen=True)
class IssueCost:
    """What one dot product takes of a processor: by this, tilings are compared.

    Parameters
    ----------
    multiplication : float
        Cycles for which a multiplying instruction takes the ports that multiply.
    multiplications, instructions : int
        How many of these, and how many instructions in all, one dot product takes.
    load : float
        Cycles for which the load of a vector of weights takes the ports that load.
    per_cycle : float
        Vector instructions issued in a cycle.
    scratch : int
        Registers beside accumulators and one vector of weights for each vector of outputs: the
        broadcast input, and intermediate sums. Measured as what still runs without spilling.
    stacked : int or None
        Accumulators that TVM keeps on the stack: those of a larger tile are on the heap, and LLVM
        cannot leave out every store into them. None where that was not seen to cost time.
    total_per_cycle : float
        Instructions of every kind issued in a cycle, those of loads and scalars included.
    unrolled : int
        Steps that a loop takes at once, where they divide: what counts and jumps is then shared.
    """

    multiplication: float
    multiplications: int
    instructions: int
    load: float
    per_cycle: float
    scratch: int
    stacked: int | None = None
    total_per_cycle: float = 5.0
    unrolled: int = 1


@dataclass(frozen=True)
class DotProduct:
    """An instruction, or a few, that accumulate products into lanes of 32 bits.

    Parameters
    ----------
    name : str
        Of the kernels that use it, of their tilings' records, and of its intrinsics.
    lanes : int
        Output channels computed side by side: accumulators of a vector register, or of `vectors`.
    group : int
        Products summed into one lane: input channels read together.
    input_dtype, weight_dtype : str
        Operand types as they lie in memory.
    registers : int
        Vector registers of the architecture.
    cost : IssueCost
    rows : int
        Output pixels whose operands are multiplied together; 1 where the input is broadcast to all
        lanes.
    tensorized : bool
        False where plain vector code is emitted and LLVM picks the instructions.
    accumulator_dtype : str
        ``"int32"``, or ``"float32"`` with operands of that type; of `looks_up` ``"uint16"``.
    saturates : bool
        Whether pairs of products are added in 16 bits, which is exact only for weights proven to
        fit; the group is `CHAIN_GROUP` then.
    part : int
        Words of a part of a register within which instructions interleave words, where taps are
        widened before (`taps.widens`); 0 where they are not.
    vectors : int
        Vector registers that hold the lanes.
    partial : int
        Sums that a lane has until its window is done, a vector of them: of ``2 * partial``
        neighbouring inputs each adds up two.
    together : int
        Input channels of an output that lie together in a weight, a divisor of ``group``; 0 for all
        of them. Behind them come those of the next lane.
    narrows : bool
        Whether the architecture has instructions that halve the width of integers and clip them:
        results are narrowed to bytes by way of words then.
    values : int
        Input channels that one element of an operand holds. Above 1 their values are bits, 1 for +1
        and 0 for -1, and what is accumulated is how many differ (`binary_stages`).
    """

    name: str
    lanes: int
    group: int
    input_dtype: str
    weight_dtype: str
    registers: int
    cost: IssueCost
    rows: int = 1
    tensorized: bool = True
    accumulator_dtype: str = "int32"
    saturates: bool = False
    part: int = 0
    vectors: int = 1
    partial: int = 1
    together: int = 0
    narrows: bool = False
    values: int = 1

    @property
    def piece(self) -> int:
        """Input channels of an output that lie together in a weight."""
        return self.together or self.group

    @property
    def input_offset(self) -> int:
        """What is taken from bytes of the input before they are multiplied: signed bytes are."""
        return 128 if self.input_dtype == "int8" else 0

    @property
    def plain(self) -> bool:
        """Whether bytes or words as they are, broadcast, meet one vector of weights."""
        apart = self.piece == self.group and self.partial == 1 and self.rows == 1
        return apart and self.vectors == 1 and not self.input_offset

    @property
    def weight_vectors(self) -> int:
        """Vector registers that the weights of all lanes take."""
        register = 4 * self.lanes * self.partial // self.vectors
        taken = self.lanes * self.group * np.dtype(self.weight_dtype).itemsize
        return max(1, taken // register)

    @property
    def binary(self) -> bool:
        """Whether it counts the bits that differ."""
        return self.values > 1

    @property
    def looks_up(self) -> bool:
        """Whether it looks counts up in a table, for as many bits as index it."""
        return self.values == INDEX_BITS


def generic(lanes: int) -> DotProduct:
    """Return what any target computes: one product a lane, of which LLVM makes what it can."""
    cost = IssueCost(0.5, 1, 4, _load(lanes), 4.0, scratch=2)
    return DotProduct("generic", lanes, 1, "uint8", "int8", 16, cost, tensorized=False)


def popcount(name: str, lanes: int, registers: int, cost: IssueCost) -> DotProduct:
    """Return what counts the bits of a word a lane, of which LLVM makes what it can."""
    return DotProduct(
        name, lanes, 1, "uint32", "uint32", registers, cost, tensorized=False, values=WORD_BITS
    )


def generic_popcount(lanes: int) -> DotProduct:
    """Return what any target counts bits with: adds of neighbours, halves, bytes, and so on."""
    return popcount("popcount", lanes, 16, IssueCost(0.5, 1, 16, _load(lanes), 4.0, scratch=6))


def multiply_add(lanes: int, registers: int) -> DotProduct:
    """Return the float32 multiply-add, which LLVM contracts from the two operations."""
    wide = registers > 16
    cost = IssueCost(lanes / 16 if wide else 0.5, 1, 1, _load(lanes), 4.0, scratch=3 if wide else 2)
    return DotProduct(
        f"fma{32 * lanes}", lanes, 1, "float32", "float32", registers, cost, tensorized=False,
        accumulator_dtype="float32",
    )  # fmt: skip


def narrowed(dot: DotProduct, lanes: int) -> DotProduct:
    """Return plain vector code of fewer lanes, under the name of the whole vector's."""
    if dot.accumulator_dtype == "float32":
        narrow = multiply_add(lanes, dot.registers)
    else:
        narrow = generic(lanes)
    return DotProduct(**{**vars(narrow), "name": dot.name})


def _load(lanes: int) -> float:
    return 1.0 if lanes == 16 else 0.5
