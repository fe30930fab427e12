"""The dot products of AArch64 processors."""

from __future__ import annotations

from tvmquant.schedules.isa import arm_dot
from tvmquant.schedules.isa.dot_product import DotProduct, IssueCost
from tvmquant.schedules.isa.registry import InstructionSet, Level, VectorUnit

# Two pipes multiply, and load; four instructions issue. Of 32 registers 20 hold accumulators: with
# more, LLVM spills. Weights of two vectors of outputs lie side by side, so that pairs are loaded.
_PAIR = IssueCost(0.5, 8, 8, 2.0, 2.0, scratch=4, total_per_cycle=4.0, unrolled=2)
_ONE = IssueCost(0.5, 4, 4, 2.0, 2.0, scratch=4, total_per_cycle=4.0, unrolled=2)
SDOT_2 = DotProduct("sdot2", 8, 16, "int8", "int8", 32, _PAIR, vectors=2, together=4, narrows=True)
SDOT = DotProduct("sdot", 4, 16, "int8", "int8", 32, _ONE, together=4, narrows=True)
USDOT_2 = DotProduct(
    "usdot2", 8, 16, "uint8", "int8", 32, _PAIR, vectors=2, together=4, narrows=True
)
USDOT = DotProduct("usdot", 4, 16, "uint8", "int8", 32, _ONE, together=4, narrows=True)

_MATRIX = IssueCost(0.5, 4, 4, 2.0, 2.0, scratch=4, total_per_cycle=4.0, unrolled=2)
USMMLA = DotProduct("usmmla", 8, 8, "uint8", "int8", 32, _MATRIX, rows=2, vectors=2, narrows=True)

_WIDENED = IssueCost(0.5, 12, 12, 2.0, 2.0, scratch=6, total_per_cycle=4.0, unrolled=2)
SMLAL = DotProduct("smlal", 4, 16, "int8", "int8", 32, _WIDENED, vectors=4, partial=4, narrows=True)

ARM = InstructionSet(
    "arm",
    architectures=("aarch64", "arm64"),
    levels=(
        Level(("i8mm",), (USMMLA, USDOT_2, USDOT)),
        Level(("dotprod",), (SDOT_2, SDOT)),
        Level((), (SMLAL,)),
    ),
    units=(VectorUnit((), 128, 32),),
    stages={**arm_dot.IMPLEMENTATIONS},
    multiply_add=arm_dot.multiply_add,
)
