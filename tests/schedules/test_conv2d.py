"""conv2d: every path of the kernel equals a direct sum, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pairwise import pairwise
from tests.schedules.conv2d_cases import (
    LAYERS,
    NARROW,
    accumulate,
    case,
    use_plain_instructions,
)
from tests.schedules.kernel_testing import COMPILED, NATIVE, build, make_target, run
from tests.schedules.random_windows import EXAMPLES, Window, windows
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d
from tvmquant.schedules.conv2d import Conv2DSpec, Tiling
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct, dot_products
from tvmquant.schedules.isa.x86 import PMADDWD_256, PMADDWD_512, VNNI_256, VNNI_512
from tvmquant.schedules.loops import round_up

# layers whose groups divide into no vector of eight outputs
WITHOUT_PAIRS = ("odd groups", "dilated groups")

# those that LAYERS lack, and the types of their residuals
EPILOGUES = {
    "64 bits": (Epilogue("int64", "uint8", 4, 250), "uint8"),
    "residual and table": (
        Epilogue("int64", "int16", 0, 255, residual=True, table=True), "uint8"
    ),
    "16-bit residual": (Epilogue("int64", "uint8", 0, 255, residual=True), "int16"),
    "32-bit residual": (Epilogue("int64", "uint8", 0, 255, residual=True), "int32"),
}  # fmt: skip

DOTS = (VNNI_512, VNNI_256, PMADDWD_512, PMADDWD_256)


def executed() -> list[tuple[str, int]]:
    """List processors, each with the chains that its dot products tell apart.

    This machine is left out where it multiplies as another one of the list.
    """
    found: dict[tuple[DotProduct, ...], str] = {}
    for name in ("haswell", "x86-64", NATIVE):
        found.setdefault(dot_products(make_target(name)), name)
    return [
        (name, chain)
        for dots, name in found.items()
        for chain in range(1 + any(dot.saturates for dot in dots))
    ]


@pytest.mark.parametrize(("mcpu", "chain"), executed())
@pytest.mark.parametrize("name", LAYERS)
def test_default_tiling_is_exact(name: str, mcpu: str, chain: int) -> None:
    """Also with weights that let AVX2 add pairs of products in 16 bits (a chain of one step)."""
    target = make_target(mcpu)
    spec = replace(LAYERS[name].flattened(), chain=chain)
    tiling = conv2d.target_tiling(spec, Machine.of(target, 2))
    assert tiling.dot.saturates == (chain == 1 and name not in WITHOUT_PAIRS)
    inputs, expected = case(spec, tiling)
    np.testing.assert_array_equal(run(conv2d.kernel(spec, tiling), target, inputs), expected)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("name", ["3x3", "stem, rows joined", "pointwise, ragged channels"])
def test_every_epilogue_is_exact(name: str, epilogue: str) -> None:
    target = make_target("haswell")
    fixed, residual_dtype = EPILOGUES[epilogue]
    spec = LAYERS[name].flattened()
    spec = replace(spec, epilogue=fixed, residual_dtype=residual_dtype)
    tiling = conv2d.target_tiling(spec, Machine.of(target, 2))
    inputs, expected = case(spec, tiling)
    assert len(np.unique(expected)) > 20  # not all are clipped
    np.testing.assert_array_equal(run(conv2d.kernel(spec, tiling), target, inputs), expected)


@settings(max_examples=EXAMPLES)
@given(st.data(), windows())
def test_random_windows_of_few_channels_are_exact(data: st.DataObject, window: Window) -> None:
    """Where the rows of many windows are joined."""
    inputs, outputs = data.draw(st.integers(1, 4)), data.draw(st.integers(30, 50))
    spec = Conv2DSpec(channels=inputs, outputs=outputs, epilogue=NARROW, chain=1, **window)
    spec, target = spec.flattened(), make_target("haswell")
    for tiling in conv2d.tilings(spec, dot_products(target), Machine.of(target, 2))[::97]:
        arguments, expected = case(spec, tiling)
        actual = run(conv2d.kernel(spec, tiling), target, arguments)
        np.testing.assert_array_equal(actual, expected)


@settings(max_examples=EXAMPLES)
@given(st.data(), windows())
def test_random_shapes_are_exact(data: st.DataObject, window: Window) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * data.draw(st.integers(1, 20)) for _ in range(2))
    epilogue = data.draw(st.sampled_from([None, *EPILOGUES.values()]))
    chain = data.draw(st.integers(0, 1))
    spec = Conv2DSpec(channels=inputs, outputs=outputs, groups=groups, chain=chain, **window)
    if epilogue is not None:
        spec = replace(spec, epilogue=epilogue[0], residual_dtype=epilogue[1])
    spec, target = spec.flattened(), make_target("haswell")
    tiling = conv2d.target_tiling(spec, Machine.of(target, 2))
    arguments, expected = case(spec, tiling)
    np.testing.assert_array_equal(run(conv2d.kernel(spec, tiling), target, arguments), expected)


@pytest.fixture
def plain_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plain_instructions(monkeypatch)


@pytest.mark.usefixtures("plain_instructions")
@pytest.mark.parametrize(
    *pairwise(
        strength=1,
        name=["3x3", "stem", "stem, rows joined", "pointwise", "grouped", "dense"],
        dot=DOTS,
    )
)
def test_schedules_of_other_processors_are_exact(name: str, dot: DotProduct) -> None:
    spec = LAYERS[name].flattened()
    generic = dot_products(make_target("x86-64"))[-1]
    tiling = conv2d.default_tiling(spec, (dot, generic), Machine.of("x86-64", 4))
    inputs, expected = case(spec, tiling)
    actual = run(conv2d.kernel(spec, tiling), make_target("x86-64"), inputs)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("parallel", ["rows", "channels"])
@pytest.mark.parametrize(("columns", "channels", "rows"), [(1, 1, 1), (5, 2, 3), (4, 3, 2)])
def test_any_tiling_is_exact(columns: int, channels: int, rows: int, parallel: str) -> None:
    target = make_target("haswell")
    spec = replace(LAYERS["3x3"], height=7, width=9, outputs=40)
    tiling = Tiling(PMADDWD_256, columns, channels, rows, 2 * columns, parallel)
    inputs, expected = case(spec, tiling)
    np.testing.assert_array_equal(run(conv2d.kernel(spec, tiling), target, inputs), expected)


SMALL_MAPS = [
    "3x3", "stem", "stem, rows joined", "strided pointwise", "dilated", "grouped", "row kernel",
    "valid",
]  # fmt: skip


@pytest.mark.parametrize("parallel", ["rows", "channels"])
@pytest.mark.parametrize("name", SMALL_MAPS)
def test_tiles_that_end_in_another_row_are_exact(name: str, parallel: str) -> None:
    spec = LAYERS[name]
    columns = next(c for c in range(3, 8) if spec.out_width % c)
    tiling = Tiling(PMADDWD_256, columns, 1, 1, round_up(spec.pixels, columns), parallel, flat=True)
    inputs, expected = case(spec, tiling)
    assert expected.shape == (spec.batch, 1, spec.pixels, spec.outputs)
    kernel = conv2d.kernel(spec, tiling)
    assert "_flat_" in str(kernel.attrs["tvmquant.kernel"])
    np.testing.assert_array_equal(run(kernel, make_target("haswell"), inputs), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_pixels_are_flat_where_no_good_tile_divides_the_width(threads: int) -> None:
    target = make_target("haswell")
    odd = Conv2DSpec(1, 17, 17, 192, 192, (7, 1), (1, 1), (3, 0, 3, 0), epilogue=NARROW, chain=1)
    tiling = conv2d.target_tiling(odd, Machine.of(target, threads))
    assert tiling.flat
    assert tiling.column_block < odd.pixels + tiling.column_tile  # less than a tile in vain
    for large in (replace(odd, height=16, width=16), replace(odd, height=170, width=170)):
        assert not conv2d.target_tiling(large, Machine.of(target, threads)).flat


@pytest.mark.parametrize(
    ("target", "instruction"),
    list(
        zip(COMPILED, [("vpmaddwd", "zmm"), ("vpdpbusd", "zmm"), ("vpdpbusd", "ymm"),
                       ("sdot", ".4b[")], strict=True)
    ),
    ids=["avx512bw", "vnni", "avx-vnni", "aarch64"],
)  # fmt: skip
def test_uses_the_intended_instruction(
    target: dict[str, Any], instruction: tuple[str, str]
) -> None:
    llvm = make_target(target)
    spec = Conv2DSpec(1, 14, 14, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW)
    tiling = conv2d.target_tiling(spec, Machine.of(llvm, 2))
    assembly = build(conv2d.kernel(spec, tiling), llvm).inspect_source("asm")
    name, register = instruction
    used = [line for line in assembly.splitlines() if f"\t{name}" in line]
    assert len(used) >= tiling.column_tile * tiling.channel_tile
    assert all(register in line for line in used)


def test_accumulators_stay_in_registers() -> None:
    """The loop over input channels of the VNNI kernel stores nothing."""
    llvm = make_target("znver4")
    spec = Conv2DSpec(1, 14, 14, 256, 256, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW)
    tiling = conv2d.target_tiling(spec, Machine.of(llvm, 2))
    assembly = build(conv2d.kernel(spec, tiling), llvm).inspect_source("asm").splitlines()
    used = [i for i, line in enumerate(assembly) if "\tvpdpbusd" in line]
    between = assembly[used[0] : used[tiling.column_tile * tiling.channel_tile - 1]]
    assert not [line for line in between if "%rsp)" in line and "zmm" in line]


def test_packing_places_every_weight() -> None:
    spec = Conv2DSpec(1, 8, 8, 3, 5, (3, 3), (1, 1), (1, 1, 1, 1))
    tiling = Tiling(VNNI_256, 2, 1, 1, 8, "rows")
    weight = np.arange(1, 5 * 9 * 3 + 1).reshape(5, 3, 3, 3).astype(np.int8)
    packed = conv2d.pack_weight(weight, spec, tiling)
    assert packed.shape == (1, 3, 1, 3, 8, 4)
    # output 2, row 1, column 2, channel 0: seventh byte of its run of nine
    assert packed[0, 1, 0, 1, 2, 2] == weight[2, 1, 2, 0]
    assert np.count_nonzero(packed) == np.count_nonzero(weight)


def test_tiles_are_balanced_over_threads() -> None:
    target = tvm.target.Target({"kind": "llvm", "mcpu": "znver4"})
    spec = Conv2DSpec(1, 56, 56, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW)
    for threads in (1, 2, 4, 8):
        tiling = conv2d.target_tiling(spec, Machine.of(target, threads))
        assert spec.out_height % tiling.row_block == 0
        assert (spec.out_height // tiling.row_block) % threads == 0


@pytest.mark.parametrize("name", LAYERS)
def test_useful_multiplications_are_those_with_pixels(name: str) -> None:
    """As many as a convolution of ones adds up."""
    spec = replace(LAYERS[name], input_zero_point=0)
    x = np.ones((spec.batch, spec.height, spec.width, spec.channels), np.uint8)
    weight = np.ones((spec.outputs, *spec.kernel, spec.channels // spec.groups), np.int8)
    assert spec.useful_macs == accumulate(spec, x, weight, 0).sum() <= spec.macs
