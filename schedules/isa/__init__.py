"""Instruction sets as data: what a target multiplies with, what that costs, and its intrinsics.

Each module of an architecture defines its `DotProduct` values and an `InstructionSet`; a new one is
registered in the list below.
"""

from tvmquant.schedules.isa.arm import ARM
from tvmquant.schedules.isa.dot_product import (
    CHAIN_GROUP,
    INDEX_BITS,
    DotProduct,
    IssueCost,
    Stage,
    narrowed,
)
from tvmquant.schedules.isa.registry import (
    ByteLookup,
    InstructionSet,
    Level,
    VectorUnit,
    architecture,
    binary_dot_products,
    byte_lookup,
    dot_products,
    fma,
    has_feature,
    intrinsic,
    multiplier,
    multiplies_in_pairs,
    offers,
    register,
    taps_intrinsic,
    unregister,
    vector_bits,
)
from tvmquant.schedules.isa.x86 import X86

__all__ = [
    "ARM",
    "CHAIN_GROUP",
    "INDEX_BITS",
    "X86",
    "ByteLookup",
    "DotProduct",
    "InstructionSet",
    "IssueCost",
    "Level",
    "Stage",
    "VectorUnit",
    "architecture",
    "binary_dot_products",
    "byte_lookup",
    "dot_products",
    "fma",
    "has_feature",
    "intrinsic",
    "multiplier",
    "multiplies_in_pairs",
    "narrowed",
    "offers",
    "register",
    "taps_intrinsic",
    "unregister",
    "vector_bits",
]

for _instructions in (ARM, X86):
    register(_instructions)
