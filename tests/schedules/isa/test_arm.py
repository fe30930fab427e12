"""The dot products of AArch64; what they compute is tested on emulated processors."""

import pytest

from tests.schedules.kernel_testing import make_target
from tvmquant.schedules import isa

PROCESSORS = {
    "cortex-a53": ["smlal"],
    "cortex-a72": ["smlal"],
    "cortex-a55": ["sdot2", "sdot"],
    "cortex-a76": ["sdot2", "sdot"],
    "neoverse-n1": ["sdot2", "sdot"],
    "neoverse-n2": ["usmmla", "usdot2", "usdot"],
    "apple-a14": ["sdot2", "sdot"],
}


@pytest.mark.parametrize("processor", list(PROCESSORS))
def test_dot_products_of_processors(processor: str) -> None:
    target = make_target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": processor})
    *found, generic = isa.dot_products(target)
    assert [dot.name for dot in found] == PROCESSORS[processor]
    assert (generic.name, generic.lanes) == ("generic", 4)
    assert isa.vector_bits(target) == 128
    assert not isa.multiplies_in_pairs(target)


def test_operands_that_lie_otherwise_can_be_left_out() -> None:
    target = make_target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n2"})
    (generic,) = isa.dot_products(target, plain=True)
    assert generic.name == "generic"
    x86 = make_target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"})
    assert isa.dot_products(x86, plain=True) == isa.dot_products(x86)


def test_registers_that_weights_take() -> None:
    target = make_target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n2"})
    matrix, pair, one, _ = isa.dot_products(target)
    assert (matrix.weight_vectors, pair.weight_vectors, one.weight_vectors) == (4, 8, 4)
