"""What a target can multiply: dot-product instructions and the vector registers.

Chosen from the features of the TVM target alone, never from those of the machine that builds.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm

from tvmquant.errors import TargetError


@dataclass(frozen=True)
class DotProduct:
    """A vector instruction that accumulates products into lanes of 32 bits.

    Parameters
    ----------
    name : str
        Name of the kernel family and of its registered intrinsic (`x86_intrinsics`).
    lanes : int
        Accumulators per vector register: output channels computed side by side.
    group : int
        Products summed into one lane by one instruction: input channels read together.
    input_dtype, weight_dtype : str
        Operand types as they lie in memory.
    registers : int
        Vector registers of the architecture.
    tensorized : bool
        False where plain vector code is emitted and LLVM picks the instructions.
    accumulator_dtype : str
        ``"int32"``, or ``"float32"`` with operands of that type.
    """

    name: str
    lanes: int
    group: int
    input_dtype: str
    weight_dtype: str
    registers: int
    tensorized: bool = True
    accumulator_dtype: str = "int32"


VNNI_512 = DotProduct("vnni512", 16, 4, "uint8", "int8", 32)
# 256-bit form: AVX-VNNI processors, and AVX512VL ones for narrow layers
VNNI_256 = DotProduct("vnni256", 8, 4, "uint8", "int8", 16)
# vpmaddubsw adds two byte products in 16 saturating bits: for weights proven not to reach them
PMADDUBSW_512 = DotProduct("pmaddubsw512", 16, 4, "uint8", "int8", 32)
PMADDUBSW_256 = DotProduct("pmaddubsw256", 8, 4, "uint8", "int8", 16)
# vpmaddwd adds two word products in 32 bits: always exact
PMADDWD_512 = DotProduct("pmaddwd512", 16, 2, "int16", "int16", 32)
PMADDWD_256 = DotProduct("pmaddwd256", 8, 2, "int16", "int16", 16)


def has_feature(target: tvm.target.Target, feature: str) -> bool:
    """Whether LLVM reports ``feature`` (for example ``"avx512vnni"``) for the target."""
    return bool(tvm.target.codegen.target_has_features(feature, target))


def is_x86(target: tvm.target.Target) -> bool:
    """Whether the target generates x86-64 code."""
    triple = target.attrs.get("mtriple") or tvm.target.codegen.llvm_get_system_triple()
    return "x86" in str(triple)


def vector_bits(target: tvm.target.Target) -> int:
    """Return the widest integer vector register of the target, in bits."""
    if is_x86(target):
        if has_feature(target, "avx512bw") and has_feature(target, "avx512vl"):
            return 512
        return 256 if has_feature(target, "avx2") else 128
    return 128


def dot_products(target: tvm.target.Target) -> tuple[DotProduct, ...]:
    """Return the dot products of a target, the fastest first; the generic one always ends the list.

    Those that add pairs of products in 16 bits (`saturates`) are exact only for weights that were
    proven to fit.

    Raises
    ------
    TargetError
        If the target is not compiled by LLVM.
    """
    if target.kind.name != "llvm":
        raise TargetError(f"target kind {target.kind.name!r} has no integer kernels; use llvm")
    found: list[DotProduct] = []
    if is_x86(target):
        wide = has_feature(target, "avx512bw") and has_feature(target, "avx512vl")
        if wide and has_feature(target, "avx512vnni"):
            found += [VNNI_512, VNNI_256]
        elif has_feature(target, "avxvnni"):
            found.append(VNNI_256)
        elif wide:
            found += [PMADDUBSW_512, PMADDWD_512, PMADDUBSW_256, PMADDWD_256]
        elif has_feature(target, "avx2"):
            found += [PMADDUBSW_256, PMADDWD_256]
    lanes = vector_bits(target) // 32
    return (*found, DotProduct("generic", lanes, 1, "uint8", "int8", 16, tensorized=False))


def fma(target: tvm.target.Target) -> DotProduct:
    """Return the float32 multiply-add of a target, which LLVM contracts from the two operations."""
    bits = vector_bits(target)
    registers = 16 if is_x86(target) and bits < 512 else 32
    return DotProduct(
        f"fma{bits}", bits // 32, 1, "float32", "float32", registers, False, "float32"
    )


def saturates(dot: DotProduct) -> bool:
    """Whether a dot product adds pairs of products in 16 bits."""
    return dot in (PMADDUBSW_512, PMADDUBSW_256)


def multiplies_in_pairs(target: tvm.target.Target) -> bool:
    """Whether the fastest dot product of a target is one that `saturates`."""
    return target.kind.name == "llvm" and saturates(dot_products(target)[0])
