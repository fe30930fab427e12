"""Bits of bytes: equal to comparisons and shifts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedules.kernel_testing import NATIVE, build, make_target, run
from tvmquant.machine import Machine
from tvmquant.schedules import isa, pack_bits
from tvmquant.schedules.isa import DotProduct
from tvmquant.schedules.isa.x86 import LOOKUP_256, POPCNT_256
from tvmquant.schedules.pack_bits import PackSpec

SHAPES = ((49, 64), (1, 96), (11, 32), (784, 256))


def check(pixels: int, channels: int, dot: DotProduct, target: str, threads: int = 1) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (pixels, channels)).astype(np.uint8)
    least = rng.choice([0, 1, 128, 255], channels).astype(np.uint8)
    turned = rng.random(channels) < 0.5
    x[0, :2], least[:2] = (127, 128), 128
    kernel = pack_bits.kernel(
        PackSpec(pixels, channels, dot), Machine.of(make_target(target), threads)
    )
    inputs = [x, least[None], pack_bits.elements_of(turned, dot)[None]]
    expected = pack_bits.elements_of((x >= least) ^ turned, dot)
    np.testing.assert_array_equal(run(kernel, make_target(target), inputs)[0], expected)


@pytest.mark.parametrize("target", ["haswell", "x86-64", NATIVE])
@pytest.mark.parametrize(("pixels", "channels"), SHAPES)
def test_bits_are_signs_by_thresholds(pixels: int, channels: int, target: str) -> None:
    check(pixels, channels, isa.binary_dot_products(make_target(target))[0], target)


@pytest.mark.parametrize("target", ["haswell", "x86-64", NATIVE])
@pytest.mark.parametrize("planes", [2, 3])
def test_every_bit_of_a_byte_is_a_plane(planes: int, target: str) -> None:
    machine = Machine.of(make_target(target), 2)
    spec = PackSpec(49, 96, isa.binary_dot_products(machine.target)[0], planes)
    x = np.random.default_rng(0).integers(0, 1 << planes, (49, 96)).astype(np.uint8)
    least, turned = np.full(96, 128, np.uint8), np.zeros(spec.elements, spec.dot.input_dtype)
    found = run(pack_bits.kernel(spec, machine), machine.target, [x, least[None], turned[None]])
    np.testing.assert_array_equal(found, pack_bits.planes_of(x, spec.dot, planes))


def test_tasks_of_threads_are_exact() -> None:
    check(784, 256, LOOKUP_256, "haswell", threads=2)


def test_words_are_packed_by_what_every_vector_unit_has() -> None:
    check(49, 64, POPCNT_256, "haswell")


@pytest.mark.parametrize(
    ("target", "compares", "packs"),
    [("haswell", "vpminub", "vpmaddubsw"), ("znver4", "vpcmp", "kmovd")],
)
def test_bits_are_packed_by_vectors(target: str, compares: str, packs: str) -> None:
    machine = Machine.of(make_target(target), 1)
    spec = PackSpec(64, 128, isa.binary_dot_products(machine.target)[0])
    module = build(pack_bits.kernel(spec, machine), machine.target)
    lines = str(module.inspect_source("asm")).splitlines()
    for mnemonic in (compares, packs):
        assert any(f"\t{mnemonic}" in line for line in lines)
