"""What a processor's name says of its dot products and vector registers."""

from __future__ import annotations

import pytest
import tvm

from tests.schedules.kernel_testing import make_target
from tvmquant.errors import TargetError
from tvmquant.schedules import isa
from tvmquant.schedules.isa import x86

# processor: its instructions, the fastest first, and the lanes of the generic code
X86 = {
    "x86-64": ((), 4),
    "nehalem": ((), 4),
    "sandybridge": ((), 4),  # AVX without AVX2 has no integer vectors of 256 bits
    "haswell": ((x86.PMADDUBSW_256, x86.PMADDWD_256), 8),
    "znver3": ((x86.PMADDUBSW_256, x86.PMADDWD_256), 8),
    "alderlake": ((x86.VNNI_256,), 8),
    "knl": ((x86.PMADDUBSW_256, x86.PMADDWD_256), 8),  # AVX512 of 32-bit words only
    "skylake-avx512": (
        (x86.PMADDUBSW_512, x86.PMADDWD_512, x86.PMADDUBSW_256, x86.PMADDWD_256), 16
    ),
    "cascadelake": ((x86.VNNI_512, x86.VNNI_256), 16),
    "icelake-server": ((x86.VNNI_512, x86.VNNI_256), 16),
    "sapphirerapids": ((x86.VNNI_512, x86.VNNI_256), 16),
    "znver4": ((x86.VNNI_512, x86.VNNI_256), 16),
}  # fmt: skip
PAIRS = {"haswell", "znver3", "knl", "skylake-avx512"}


def aarch64(processor: str) -> tvm.target.Target:
    return make_target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": processor})


@pytest.mark.parametrize("processor", X86)
def test_dot_products_of_processors(processor: str) -> None:
    target = make_target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": processor})
    *found, generic = isa.dot_products(target)
    expected, lanes = X86[processor]
    assert tuple(found) == expected
    assert (generic.name, generic.lanes, generic.group) == ("generic", lanes, 1)
    assert not generic.tensorized
    assert isa.vector_bits(target) == 32 * lanes
    assert isa.multiplies_in_pairs(target) == (processor in PAIRS)


def test_other_architectures_have_generic_code() -> None:
    target = make_target({"kind": "llvm", "mtriple": "riscv64-linux-gnu"})
    (generic,) = isa.dot_products(target)
    assert (generic.name, generic.lanes) == ("generic", 4)
    assert isa.architecture(target) == "riscv64"
    assert not isa.multiplies_in_pairs(target)


@pytest.mark.parametrize("feature", ["-avx512vnni", "-avx512bw", "-avx512vl"])
def test_features_taken_away_count(feature: str) -> None:
    target = make_target({"kind": "llvm", "mcpu": "cascadelake", "mattr": [feature]})
    found = isa.dot_products(target)
    assert not {x86.VNNI_512, x86.VNNI_256} & set(found)
    assert (x86.PMADDWD_512 in found) == (feature == "-avx512vnni")


@pytest.mark.parametrize(
    ("processor", "lanes", "registers"), [("x86-64", 4, 16), ("haswell", 8, 16), ("znver4", 16, 32)]
)
def test_multiply_add_of_floats(processor: str, lanes: int, registers: int) -> None:
    dot = isa.fma(make_target(processor))
    assert (dot.lanes, dot.registers, dot.accumulator_dtype) == (lanes, registers, "float32")
    assert isa.fma(aarch64("cortex-a76")).registers == 32


def test_only_pairs_of_bytes_saturate() -> None:
    dots = {dot for found, _ in X86.values() for dot in found}
    assert {dot.name for dot in dots if dot.saturates} == {"pmaddubsw256", "pmaddubsw512"}


def test_targets_without_llvm_are_refused() -> None:
    with pytest.raises(TargetError, match="'c' has no integer kernels; use llvm"):
        isa.dot_products(tvm.target.Target({"kind": "c"}))
    with pytest.raises(TargetError, match="'c' has no integer kernels; use llvm"):
        isa.binary_dot_products(tvm.target.Target({"kind": "c"}))
    assert not isa.multiplies_in_pairs(tvm.target.Target({"kind": "c"}))


@pytest.mark.parametrize(
    ("name", "lanes"), [("skylake-avx512", 64), ("knl", 32), ("haswell", 32), ("sandybridge", 0)]
)
def test_bytes_are_looked_up_by_whole_vectors(name: str, lanes: int) -> None:
    way = isa.byte_lookup(make_target(name))
    assert (way.lanes if way else 0) == lanes


# processor: what counts bits, the fastest first, and the lanes of the generic code
BINARY = {
    "x86-64": ((), 4),
    "nehalem": ((), 4),
    "haswell": ((x86.LOOKUP_256,), 8),
    "alderlake": ((x86.LOOKUP_256,), 8),
    "skylake-avx512": ((x86.LOOKUP_512, x86.LOOKUP_256), 16),
    "cascadelake": ((x86.LOOKUP_512, x86.LOOKUP_256), 16),
    "icelake-server": ((x86.POPCNT_512, x86.POPCNT_256), 16),
    "znver4": ((x86.POPCNT_512, x86.POPCNT_256), 16),
}


@pytest.mark.parametrize("processor", BINARY)
def test_dot_products_of_bits(processor: str) -> None:
    target = make_target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": processor})
    *found, generic = isa.binary_dot_products(target)
    expected, lanes = BINARY[processor]
    assert tuple(found) == expected
    assert (generic.name, generic.lanes, generic.values) == ("popcount", lanes, 32)
    assert all(dot.binary and dot.looks_up == (dot.values == 4) for dot in (*found, generic))
    assert not any(dot.binary for dot in isa.dot_products(target))


def test_other_architectures_count_bits_in_generic_code() -> None:
    (generic,) = isa.binary_dot_products(aarch64("cortex-a76"))
    assert (generic.name, generic.lanes) == ("popcount", 4)
