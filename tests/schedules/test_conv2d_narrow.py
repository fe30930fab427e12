"""conv2d with 4-bit weights, with 16-bit chains and with groups: equal to a direct sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.schedules.conv2d_cases import LAYERS, NARROW, case, use_plain_instructions
from tests.schedules.kernel_testing import NATIVE, build, make_target, run
from tvmquant.errors import TargetError
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d
from tvmquant.schedules.conv2d import Conv2DSpec, Tiling
from tvmquant.schedules.isa import DotProduct, dot_products
from tvmquant.schedules.isa.x86 import (
    PMADDUBSW_256,
    PMADDUBSW_512,
    PMADDWD_256,
    VNNI_256,
    VNNI_512,
)

# what each choice makes of a spec, and the largest activation
CHOICES: dict[str, tuple[dict[str, int], int]] = {
    "w4a8": ({"w_bits": 4, "chain": 8}, 255),
    "w4a4": ({"w_bits": 4, "chain": 128}, 15),
    "w4a8g32": ({"w_bits": 4, "w_group": 32, "chain": 8}, 255),
    "w4a4g64": ({"w_bits": 4, "w_group": 64, "chain": 128}, 15),
    "w8a4": ({"chain": 8}, 15),
}
LARGE = Conv2DSpec(1, 14, 14, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW)


def narrowed(layer: str, choice: str) -> tuple[Conv2DSpec, int]:
    fields, qmax = CHOICES[choice]
    return replace(LAYERS[layer].flattened(), **fields), qmax


def check(spec: Conv2DSpec, tiling: Tiling, qmax: int, target: str) -> None:
    inputs, expected = case(spec, tiling, qmax=qmax)
    actual = run(conv2d.kernel(spec, tiling), make_target(target), inputs)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    "layer", ["stem", "stem, rows joined", "pointwise, ragged channels", "dense"]
)
def test_default_tiling_is_exact(layer: str, choice: str) -> None:
    spec, qmax = narrowed(layer, choice)
    check(spec, conv2d.target_tiling(spec, Machine.of("haswell", 2)), qmax, "haswell")


@pytest.mark.parametrize("choice", ["w4a8", "w4a4"])
@pytest.mark.parametrize("layer", ["dilated", "grouped", "odd groups", "pointwise"])
def test_runs_of_single_taps_are_exact(layer: str, choice: str) -> None:
    spec, qmax = narrowed(layer, choice)
    check(spec, conv2d.target_tiling(spec, Machine.of("haswell", 2)), qmax, "haswell")


@pytest.mark.parametrize("choice", ["w4a8", "w4a8g32"])
@pytest.mark.parametrize("target", ["x86-64", NATIVE])
def test_any_processor_is_exact(target: str, choice: str) -> None:
    spec, qmax = narrowed("stem, rows joined", choice)
    check(spec, conv2d.target_tiling(spec, Machine.of(make_target(target), 2)), qmax, target)


@pytest.mark.parametrize("choice", ["w4a8", "w4a8g32"])
@pytest.mark.parametrize(
    "dot", [VNNI_512, VNNI_256, PMADDUBSW_512, PMADDWD_256], ids=lambda dot: dot.name
)
def test_schedules_of_other_processors_are_exact(
    dot: DotProduct, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_plain_instructions(monkeypatch)
    spec, qmax = narrowed("dense" if dot == VNNI_256 else "3x3", choice)
    generic = dot_products(make_target("x86-64"))[-1]
    check(
        spec, conv2d.default_tiling(spec, (dot, generic), Machine.of("x86-64", 4)), qmax, "x86-64"
    )


@pytest.mark.parametrize("parallel", ["rows", "channels"])
@pytest.mark.parametrize("unpack", ["block", "registers"])
@pytest.mark.parametrize("chain", [1, 6])
def test_any_tiling_is_exact(chain: int, unpack: str, parallel: str) -> None:
    spec, qmax = narrowed("3x3", "w4a4")
    spec = replace(spec, height=7, width=9, outputs=40)
    rows, columns = (spec.out_height, 9) if parallel == "channels" else (2, 6)
    tiling = Tiling(PMADDUBSW_256, 3, 2, rows, columns, parallel, chain, unpack)
    check(spec, tiling, qmax, "haswell")


@pytest.mark.parametrize("choice", ["w4a8", "w4a8g32", "w8a4"])
def test_listed_tilings_are_exact(choice: str) -> None:
    target = make_target("haswell")
    spec, qmax = narrowed("3x3", choice)
    spec = replace(spec, channels=20)
    listed = conv2d.tilings(spec, dot_products(target), Machine.of(target, 2))
    assert len(set(listed)) == len(listed)
    assert conv2d.target_tiling(spec, Machine.of(target, 2)) in listed
    for index in np.random.default_rng(1).choice(len(listed), 4, replace=False):
        check(spec, listed[index], qmax, "haswell")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("layer", LAYERS)
def test_tilings_keep_to_what_was_proven(layer: str, threads: int) -> None:
    machine = Machine.of("haswell", threads)
    dots = dot_products(machine.target)
    for chain in (0, 1, 3, 128):
        spec = replace(LAYERS[layer].flattened(), chain=chain)
        listed = conv2d.tilings(spec, dots, machine)
        assert conv2d.default_tiling(spec, dots, machine) in listed
        assert all(t.chain <= max(chain, 1) for t in listed)
        assert chain or PMADDUBSW_256 not in {t.dot for t in listed}
        assert all(t.column_block % t.column_tile == 0 for t in listed)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("chain", [1, 8, 128])
def test_extremes_fill_sixteen_bits(chain: int, sign: int) -> None:
    """Chains as long as can be, of the largest products of one sign: 255 * 128 = 32640."""
    weight = np.full((8, 1, 1, 1024), sign * max(1, 64 // chain), np.int8)
    qmax = 255 if chain < 128 else 15
    spec = Conv2DSpec(1, 1, 3, 1024, 8)
    spec = replace(spec, chain=conv2d.provable_chain(weight, spec, 0, qmax))
    assert spec.chain >= chain
    spec = replace(spec, chain=chain)
    tiling = Tiling(PMADDUBSW_256, 3, 1, 1, 3, "rows", chain)
    x = np.full((1, 1, 3, 1024), qmax, np.uint8)
    inputs = [x, conv2d.pack_weight(weight, spec, tiling), np.zeros(8, np.int32)]
    actual = run(conv2d.kernel(spec, tiling), make_target("haswell"), inputs)
    np.testing.assert_array_equal(actual, int(weight[0, 0, 0, 0]) * 1024 * qmax)


def test_longer_chains_are_refused() -> None:
    spec, _ = narrowed("3x3", "w4a8")
    tiling = Tiling(PMADDUBSW_256, 2, 1, 1, 8, "rows", 16)
    with pytest.raises(TargetError, match="16 steps in 16 bits, its weights allow 8"):
        conv2d.kernel(spec, tiling)


def test_unpacks_a_byte_to_two_steps() -> None:
    """Packing does not depend on the register tile: low nibble first, biased by 8."""
    spec = Conv2DSpec(1, 1, 4, 8, 8, w_bits=4)
    weight = np.arange(64).reshape(8, 1, 1, 8).astype(np.int8) % 15 - 7
    for columns in (1, 4):
        tiling = Tiling(VNNI_256, columns, 1, 1, 4, "rows")
        packed = conv2d.pack_weight(weight, spec, tiling)
        assert packed.shape == (1, 1, 1, 1, 8, 4)
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal((packed[0, 0, 0, 0] & 15) - 8.0, weight[:, 0, 0, :4])
        np.testing.assert_array_equal((packed[0, 0, 0, 0] >> 4) - 8.0, weight[:, 0, 0, 4:])


def assembly_of(spec: Conv2DSpec, target: str | dict[str, Any]) -> tuple[Tiling, list[str]]:
    llvm = make_target(target)
    tiling = conv2d.target_tiling(spec, Machine.of(llvm, 1))
    module = build(conv2d.kernel(spec, tiling), llvm)
    return tiling, module.inspect_source("asm").splitlines()


@pytest.mark.parametrize("choice", ["w4a8", "w4a4", "w4a8g32"])
def test_products_are_added_in_sixteen_bits(choice: str) -> None:
    tiling, lines = assembly_of(replace(LARGE, **CHOICES[choice][0]), "haswell")
    assert tiling.dot == PMADDUBSW_256
    assert tiling.chain >= 8
    used = [i for i, line in enumerate(lines) if "\tvpmaddubsw" in line]
    added = [i for i in used if "\tvpaddw" in lines[i + 1] and "ymm" in lines[i + 1]]
    products = tiling.column_tile * tiling.channel_tile
    assert len(added) >= products
    if choice == "w4a4":  # the loop of a long chain touches memory for its operands only
        body = lines[added[0] : added[products - 1] + 2]
        assert not [line for line in body if "rsp)" in line or "\tvpmaddwd" in line]


@pytest.mark.parametrize("choice", ["w4a8", "w4a8g32"])
def test_four_bits_use_the_dot_product_of_the_processor(choice: str) -> None:
    tiling, lines = assembly_of(replace(LARGE, **CHOICES[choice][0]), "znver4")
    assert tiling.dot == VNNI_512
    used = [line for line in lines if "\tvpdpbusd" in line and "zmm" in line]
    assert len(used) >= tiling.column_tile * tiling.channel_tile


def test_names_tell_choices_apart() -> None:
    names = set()
    for fields, _ in CHOICES.values():
        spec = replace(LARGE, **fields)
        tiling = conv2d.target_tiling(spec, Machine.of("haswell", 1))
        names.add(str(conv2d.kernel(spec, tiling).attrs["tvmquant.kernel"]))
    assert len(names) == len(CHOICES)
    assert any("u8s4g32s32" in name for name in names)
