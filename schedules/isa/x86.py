"""The dot products of x86 processors, from AVX2 to AVX512-VNNI."""

from __future__ import annotations

from tvmquant.schedules.isa import x86_binary, x86_dot, x86_lookup, x86_taps
from tvmquant.schedules.isa.dot_product import (
    INDEX_BITS,
    DotProduct,
    IssueCost,
    Stage,
    popcount,
)
from tvmquant.schedules.isa.registry import ByteLookup, InstructionSet, Level, VectorUnit

# Ports multiply 512 bits in a cycle, or two vectors of 256; a load of 64 bytes takes both that
# load. Of 512 bits, two instructions issue in a cycle, else four. TVM keeps a KiB on the stack.
VNNI_512 = DotProduct(
    "vnni512", 16, 4, "uint8", "int8", 32,
    IssueCost(1.0, 1, 1, 1.0, 2.0, scratch=3, stacked=16),
)  # fmt: skip
# 256-bit form: AVX-VNNI processors, and AVX512VL ones for narrow layers
VNNI_256 = DotProduct(
    "vnni256", 8, 4, "uint8", "int8", 16,
    IssueCost(0.5, 1, 1, 0.5, 4.0, scratch=2),
)  # fmt: skip
# vpmaddubsw adds two byte products in 16 saturating bits, vpmaddwd by ones widens the sums, vpaddd:
# a vector of ones and two of sums beside the broadcast input
PMADDUBSW_512 = DotProduct(
    "pmaddubsw512", 16, 4, "uint8", "int8", 32,
    IssueCost(1.0, 2, 3, 1.0, 2.0, scratch=4), saturates=True,
)  # fmt: skip
PMADDUBSW_256 = DotProduct(
    "pmaddubsw256", 8, 4, "uint8", "int8", 16,
    IssueCost(0.5, 2, 3, 0.5, 4.0, scratch=4), saturates=True,
)  # fmt: skip
# vpmaddwd adds two word products in 32 bits, always exact, and vpaddd; words are interleaved
# within 128 bits
PMADDWD_512 = DotProduct(
    "pmaddwd512", 16, 2, "int16", "int16", 32,
    IssueCost(1.0, 1, 2, 1.0, 2.0, scratch=3), part=8,
)  # fmt: skip
PMADDWD_256 = DotProduct(
    "pmaddwd256", 8, 2, "int16", "int16", 16,
    IssueCost(0.5, 1, 2, 0.5, 4.0, scratch=2), part=8,
)  # fmt: skip
# Of bits. vpopcntd counts those of xor'ed words; vpshufb looks up how many of four differ, for as
# many outputs as a register has bytes
POPCNT_512 = popcount("vpopcntd512", 16, 32, IssueCost(1.0, 1, 3, 1.0, 2.0, scratch=3, stacked=16))
POPCNT_256 = popcount("vpopcntd256", 8, 32, IssueCost(0.5, 1, 3, 0.5, 4.0, scratch=3))
LOOKUP_512 = DotProduct(
    "vpshufb512", 64, 1, "uint8", "uint8", 32, IssueCost(1.0, 1, 2, 1.0, 2.0, scratch=3, stacked=8),
    accumulator_dtype="uint16", values=INDEX_BITS,
)  # fmt: skip
LOOKUP_256 = DotProduct(
    "vpshufb256", 32, 1, "uint8", "uint8", 16, IssueCost(0.5, 1, 2, 0.5, 4.0, scratch=3),
    accumulator_dtype="uint16", values=INDEX_BITS,
)  # fmt: skip

_WIDE = ("avx512bw", "avx512vl")

X86 = InstructionSet(
    "x86",
    architectures=("x86_64",),
    levels=(
        Level((*_WIDE, "avx512vnni"), (VNNI_512, VNNI_256)),
        Level(("avxvnni",), (VNNI_256,)),
        Level(_WIDE, (PMADDUBSW_512, PMADDWD_512, PMADDUBSW_256, PMADDWD_256)),
        Level(("avx2",), (PMADDUBSW_256, PMADDWD_256)),
    ),
    units=(VectorUnit(_WIDE, 512, 32), VectorUnit(("avx2",), 256, 16), VectorUnit((), 128, 16)),
    binary=(
        Level((*_WIDE, "avx512vpopcntdq"), (POPCNT_512, POPCNT_256)),
        Level(_WIDE, (LOOKUP_512, LOOKUP_256)),
        Level(("avx2",), (LOOKUP_256,)),
    ),
    stages={
        **x86_dot.IMPLEMENTATIONS,
        **x86_binary.IMPLEMENTATIONS,
        Stage.TAPS: x86_taps.implementation,
    },
    multiply_add=x86_dot.multiply_add,
    lookups=(
        ByteLookup(_WIDE, "pshufb512", 64, x86_lookup.lookup),
        ByteLookup(("avx2",), "pshufb256", 32, x86_lookup.lookup),
    ),
)
