"""conv2d of bits, of values that are -1 or +1 and of codes of a few: equal to a direct sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedules.conv2d_cases import (
    NARROW,
    RESIDUALS,
    accumulate,
    use_plain_instructions,
)
from tests.schedules.kernel_testing import (
    NATIVE,
    apply_epilogue,
    build,
    epilogue_inputs,
    make_target,
    run,
)
from tests.schedules.random_windows import EXAMPLES, Window, windows
from tvmquant.errors import TargetError
from tvmquant.formats import BINARY_MIDDLE
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d, isa
from tvmquant.schedules.conv2d import Conv2DSpec, Tiling
from tvmquant.schedules.conv2d_binary import LONGEST_COUNT
from tvmquant.schedules.conv2d_tasks import balance, tasks
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct
from tvmquant.schedules.isa.dot_product import generic_popcount
from tvmquant.schedules.isa.x86 import LOOKUP_256, LOOKUP_512, POPCNT_256, POPCNT_512
from tvmquant.schedules.loops import round_up
from tvmquant.schedules.pack_bits import planes_of

SHORT_ADD = Epilogue("int64", "int16", -32767, 32767, residual=True)


def layer(*fields: Any, **more: Any) -> Conv2DSpec:
    return Conv2DSpec(*fields, **more, input_zero_point=BINARY_MIDDLE, binary=True)


LAYERS = {
    "pointwise": layer(1, 7, 7, 64, 24),
    "3x3": layer(1, 8, 8, 32, 24, (3, 3), (1, 1), (1, 1, 1, 1)),
    "many channels": layer(1, 5, 6, 512, 100, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW),
    "batch, residual": layer(
        3, 5, 5, 96, 100, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=SHORT_ADD, residual_dtype="int16"
    ),
    "strided": layer(1, 9, 11, 64, 5, (3, 3), (2, 2), (1, 1, 1, 1), epilogue=NARROW),
    "strided pointwise": layer(1, 9, 8, 32, 24, (1, 1), (2, 2)),
    "dilated": layer(1, 9, 9, 96, 24, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "more on one side": layer(1, 9, 8, 32, 5, (5, 5), (1, 2), (0, 3, 4, 1), epilogue=NARROW),
    "padded pointwise": layer(1, 5, 5, 32, 5, (1, 1), (1, 1), (1, 0, 2, 1)),
    "window larger than image": layer(1, 2, 3, 64, 24, (5, 5), (1, 1), (2, 2, 2, 2)),
    "taps beyond both sides": layer(2, 3, 3, 32, 24, (3, 3), (1, 1), (4, 4, 4, 4), (4, 4)),
    "row": layer(1, 1, 1, 512, 100, epilogue=NARROW),
    "seven rows": layer(7, 1, 1, 96, 5),
}
A2, A3, W2 = {"input_planes": 2}, {"input_planes": 3}, {"weight_planes": 2}
SEVERAL = {
    "3x3, 3 bits": replace(LAYERS["3x3"], **A3, input_zero_point=1),
    "many channels, 2 bits": replace(LAYERS["many channels"], **A2, input_zero_point=3),
    "batch, residual, 3 bits": replace(LAYERS["batch, residual"], **A3, input_zero_point=3),
    "strided, 2 bits": replace(LAYERS["strided"], **A2, input_zero_point=2),
    "strided, ternary": replace(LAYERS["strided"], **W2),
    "dilated, ternary": replace(LAYERS["dilated"], **W2),
    "window larger than image, ternary": replace(LAYERS["window larger than image"], **W2),
    "taps beyond both sides, 3 bits": replace(
        LAYERS["taps beyond both sides"], **A3, input_zero_point=4
    ),
    "seven rows, ternary": replace(LAYERS["seven rows"], **W2),
}
LAYERS |= SEVERAL
DOTS = (LOOKUP_512, LOOKUP_256, POPCNT_512, POPCNT_256)


def case(spec: Conv2DSpec, tiling: Tiling, seed: int = 0) -> tuple[list[Any], Any]:
    """Return the kernel's inputs and the expected output.

    The first outputs differ from the first image in all bits, or in none.
    """
    rng = np.random.default_rng(seed)
    least, step = (127, 2) if spec.input_planes == 1 else (0, 1)
    levels = least + step * np.arange(1 << spec.input_planes)
    x = rng.choice(levels, (spec.batch, spec.height, spec.width, spec.channels)).astype(np.uint8)
    values = [-1, 1] if spec.weight_planes == 1 else [-1, 0, 1]
    weight = rng.choice(values, (spec.outputs, *spec.kernel, spec.channels)).astype(np.int8)
    weight[0], weight[-1], x[0] = 1, -1, levels[-1]
    bias = rng.integers(-500, 500, spec.outputs)
    length = conv2d.padded_outputs(spec, tiling)

    def lengthen(v: Any) -> Any:
        return np.concatenate([v, np.zeros(length - v.size, v.dtype)])

    middle = (levels[0] + levels[-1]) // 2
    folded = (bias - middle * weight.sum(axis=(1, 2, 3), dtype=int)).astype(np.int32)
    bits = planes_of((x - least) // step, tiling.dot, spec.input_planes)
    inputs = [
        bits.reshape(conv2d.input_shape(spec, tiling)),
        conv2d.pack_weight(weight, spec, tiling),
        *([conv2d.counts()] if tiling.dot.looks_up else []),
        conv2d.pack_bias(folded, weight, spec, tiling),
    ]
    acc = accumulate(spec, x, weight, folded)
    acc = acc.reshape(conv2d.output_shape(spec, tiling))
    epilogue = spec.epilogue
    if epilogue is None:
        return inputs, acc.astype(np.int32)
    assert isinstance(epilogue, Epilogue)
    vectors = epilogue_inputs(rng, epilogue, spec.outputs, int(np.abs(acc).max()))
    inputs += [lengthen(vectors[k]) for k in ("multiplier", "offset", "shift")]
    residual = None
    if epilogue.residual:
        low, high = RESIDUALS[spec.residual_dtype]
        values = rng.integers(low, high + 1, acc.shape).astype(spec.residual_dtype)
        factor = rng.integers(1, 1 << 19, spec.outputs).astype(epilogue.compute_dtype)
        residual = (values, factor)
        inputs += [values, lengthen(factor)]
    return inputs, apply_epilogue(epilogue, acc, **vectors, residual=residual)


def check(spec: Conv2DSpec, tiling: Tiling, target: str) -> None:
    inputs, expected = case(spec, tiling)
    actual = run(conv2d.kernel(spec, tiling), make_target(target), inputs)
    np.testing.assert_array_equal(actual, expected)


def default(spec: Conv2DSpec, target: str, threads: int = 2) -> Tiling:
    return conv2d.target_tiling(spec, Machine.of(make_target(target), threads))


@pytest.mark.parametrize("target", ["haswell", "x86-64", NATIVE])
@pytest.mark.parametrize("name", LAYERS)
def test_default_tiling_is_exact(name: str, target: str) -> None:
    spec = LAYERS[name].flattened()
    tiling = default(spec, target)
    assert tiling.dot in isa.binary_dot_products(make_target(target))
    check(spec, tiling, target)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("zero_point", [127, 129, 0, 3])
@pytest.mark.parametrize(
    ("name", "planes"),
    [("3x3", {}), ("more on one side", {}), ("3x3", W2), ("more on one side", A2)],
)
def test_any_zero_point_pads(
    name: str, planes: dict[str, int], zero_point: int, flat: bool
) -> None:
    """Of activations that are never negative it is the lower level."""
    spec = replace(LAYERS[name], **planes, input_zero_point=zero_point)
    block = round_up(spec.pixels, 3) if flat else round_up(spec.out_width, 3)
    chain = 24 if name == "3x3" else 40
    check(spec, Tiling(LOOKUP_256, 3, 1, 1, block, "rows", chain, flat=flat), "haswell")
    check(spec, Tiling(generic_popcount(4), 3, 1, 1, block, "rows", flat=flat), "x86-64")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("parallel", ["rows", "channels", "none"])
@pytest.mark.parametrize(
    "name",
    ["3x3", "pointwise", "batch, residual", "more on one side", "strided, 2 bits"],
)
def test_tasks_of_threads_are_exact(name: str, parallel: str, threads: int) -> None:
    spec = LAYERS[name].flattened()
    tiling = replace(default(spec, "haswell", threads), parallel=parallel)
    if parallel == "channels":
        whole = default(spec, "haswell", threads)
        height, width = spec.out_extents(flat=whole.flat)
        tiles = -(-width // whole.column_tile)
        tiling = replace(tiling, row_block=height, column_block=tiles * whole.column_tile)
    check(spec, tiling, "haswell")


def check_listed(target: str, step: int, **planes: int) -> None:
    spec = layer(1, 5, 5, 32, 40, (3, 3), (1, 1), (1, 1, 1, 1), **planes)
    machine = Machine.of(make_target(target), 2)
    dots = conv2d.target_dots(spec, machine)
    listed = conv2d.tilings(spec, dots, machine)
    assert len(set(listed)) == len(listed)
    assert {t.flat for t in listed} == {False, True}
    assert {t.dot for t in listed} == set(dots[:1])
    for tiling in listed[::step]:
        check(spec, tiling, target)


@pytest.mark.parametrize("target", ["haswell", "x86-64"])
def test_listed_tilings_are_exact(target: str) -> None:
    check_listed(target, 23)


@pytest.mark.slow
@pytest.mark.parametrize("planes", [{}, A2, A3, W2], ids=["1", "2", "3", "ternary"])
@pytest.mark.parametrize("target", ["haswell", "x86-64"])
def test_every_listed_tiling_is_exact(target: str, planes: dict[str, int]) -> None:
    check_listed(target, 1, **planes)


@pytest.mark.parametrize("flat", [False, True])
def test_tiles_past_the_edge_are_exact(flat: bool) -> None:
    spec = layer(2, 7, 5, 64, 40, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW)
    block = 36 if flat else 6
    check(spec, Tiling(LOOKUP_256, 3, 2, 1, block, "rows", 48, flat=flat), "haswell")
    check(spec, Tiling(generic_popcount(4), 3, 2, 1, block, "rows", flat=flat), "x86-64")


@pytest.mark.parametrize("dot", DOTS, ids=lambda dot: dot.name)
@pytest.mark.parametrize(
    "name",
    ["3x3", "many channels", "seven rows", "strided", "3x3, 3 bits", "strided, ternary"],
)
def test_schedules_of_other_processors_are_exact(
    name: str, dot: DotProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_plain_instructions(monkeypatch)
    spec = LAYERS[name].flattened()
    tiling = conv2d.default_tiling(spec, (dot, generic_popcount(4)), Machine.of("x86-64", 4))
    assert tiling.dot == dot
    check(spec, tiling, "x86-64")


@pytest.mark.parametrize("name", ["3x3", "many channels", "seven rows", "strided"])
def test_words_are_counted_by_what_every_vector_unit_has(name: str) -> None:
    """LLVM counts their bits in other instructions where there is no ``vpopcntd``."""
    spec = LAYERS[name].flattened()
    tiling = conv2d.default_tiling(spec, (POPCNT_256, generic_popcount(8)), Machine.of("haswell"))
    check(spec, tiling, "haswell")


@settings(max_examples=EXAMPLES)
@given(st.data(), windows())
def test_random_windows_are_exact(data: st.DataObject, window: Window) -> None:
    channels, outputs = 32 * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    planes = data.draw(st.sampled_from([{}, A2, A3, W2]))
    zero = BINARY_MIDDLE if planes.get("input_planes", 1) == 1 else data.draw(st.integers(0, 3))
    fields = {**window, **planes, "input_zero_point": zero}
    spec = Conv2DSpec(channels=channels, outputs=outputs, binary=True, **fields).flattened()
    target = data.draw(st.sampled_from(["haswell", "x86-64"]))
    check(spec, default(spec, target), target)


@pytest.mark.parametrize("target", ["haswell", "x86-64"])
@pytest.mark.parametrize(
    ("channels", "planes"),
    [((1 << 16) - 32, {}), (1 << 16, {}), (1 << 20, {}), ((1 << 16) - 32, A3), (1 << 20, A3)],
)
def test_counts_of_long_windows_fit(channels: int, planes: dict[str, int], target: str) -> None:
    """All bits differ: 16 bits hold fewer than 2**16, words add up in 32; each plane of its own."""
    spec = layer(1, 1, 2, channels, 5, **planes)
    tiling = default(spec, target)
    assert (tiling.dot == LOOKUP_256) == (target == "haswell" and channels < 1 << 16)
    check(spec, tiling, target)


def test_longer_chains_are_refused() -> None:
    spec = layer(1, 1, 4, 1024, 32)
    steps = 1024 // LOOKUP_256.values
    with pytest.raises(TargetError, match=f"{steps} counts in 8 bits, which hold {LONGEST_COUNT}"):
        conv2d.kernel(spec, Tiling(LOOKUP_256, 4, 1, 1, 4, "rows", steps))
    assert default(spec, "haswell").chain == 32


def test_rows_and_columns_of_equal_bias_are_classes() -> None:
    """A bias for each: what the taps in the padding add is taken out of it."""
    tiling = Tiling(LOOKUP_256, 1, 1, 1, 64, "rows", 8, flat=True)
    spec = layer(1, 8, 8, 32, 5, (3, 3), (1, 1), (1, 1, 1, 1))
    weight = np.random.default_rng(0).choice([-1, 1], (5, 3, 3, 32)).astype(np.int8)
    biases = conv2d.pack_bias(np.zeros(5, np.int32), weight, spec, tiling)
    assert biases.shape == (3, 3, 32)
    whole = 9 * 32 + BINARY_MIDDLE * weight.sum(axis=(1, 2, 3), dtype=int)
    np.testing.assert_array_equal(biases[1, 1, :5], whole)
    above = weight[:, 0].sum(axis=(1, 2), dtype=int)
    np.testing.assert_array_equal(biases[0, 1, :5], whole + above)
    right = weight[:, :, 2].sum(axis=(1, 2), dtype=int)
    np.testing.assert_array_equal(biases[1, 2, :5], whole + right)
    # where rows of the window that are in the padding are skipped, nothing is to make up for them
    skipped = conv2d.pack_bias(np.zeros(5, np.int32), weight, spec, replace(tiling, flat=False))
    np.testing.assert_array_equal(skipped[0, 1, :5], whole - 3 * 32)
    np.testing.assert_array_equal(skipped[1, 2, :5], whole + right)
    small = replace(spec, height=2)
    assert conv2d.pack_bias(np.zeros(5, np.int32), weight, small, tiling).shape == (2, 3, 32)


LARGE = layer(1, 14, 14, 128, 128, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW)


def lines_of(spec: Conv2DSpec, tiling: Tiling, target: str) -> list[str]:
    module = build(conv2d.kernel(spec, tiling), make_target(target))
    return str(module.inspect_source("asm")).splitlines()


def test_counts_are_looked_up_and_added_in_registers() -> None:
    tiling = default(LARGE, "haswell", 1)
    assert tiling.dot == LOOKUP_256
    lines = lines_of(LARGE, tiling, "haswell")
    used = [i for i, line in enumerate(lines) if "\tvpshufb" in line and "ymm" in line]
    products = tiling.column_tile * tiling.channel_tile
    body = lines[used[0] : used[products - 1] + 2]
    assert sum("\tvpaddb" in line for line in body) >= products - 1
    assert not [line for line in body if "rsp)" in line]


@pytest.mark.parametrize(
    ("target", "instruction"),
    [("znver4", "vpopcntd"), ("icelake-server", "vpopcntd"), ("skylake-avx512", "vpshufb")],
)
def test_uses_the_intended_instruction(target: str, instruction: str) -> None:
    tiling = default(LARGE, target, 1)
    used = [line for line in lines_of(LARGE, tiling, target) if f"\t{instruction}\t" in line]
    wide = [line for line in used if "zmm" in line]
    assert len(wide) >= tiling.column_tile * tiling.channel_tile


def test_other_architectures_count_bits_by_vectors() -> None:
    arm = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}
    target = make_target(arm)
    tiling = conv2d.target_tiling(LARGE, Machine.of(target, 2))
    lines = str(build(conv2d.kernel(LARGE, tiling), target).inspect_source("asm")).splitlines()
    counted = [line for line in lines if "\tcnt\t" in line]
    assert len(counted) >= tiling.column_tile * tiling.channel_tile
    assert all(".16b" in line for line in counted)


@pytest.mark.parametrize("threads", [2, 7])
@pytest.mark.parametrize("target", ["haswell", "skylake-avx512", "znver4"])
def test_every_thread_has_as_much_to_do(target: str, threads: int) -> None:
    for size, channels in ((56, 128), (28, 256), (14, 256), (7, 512)):
        for window in (1, 3):
            border = (window // 2,) * 4
            spec = layer(1, size, size, channels, channels, (window, window), (1, 1), border)
            tiling = default(spec.flattened(), target, threads)
            assert balance(tasks(spec.flattened(), tiling), threads) >= 0.9


def test_names_tell_bits_from_bytes() -> None:
    kernel = conv2d.kernel(LARGE, default(LARGE, "haswell", 1))
    assert "_u1s1s32_vpshufb256_" in str(kernel.attrs["tvmquant.kernel"])
