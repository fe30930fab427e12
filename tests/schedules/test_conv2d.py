"""conv2d: every path of the kernel equals a direct sum, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.s_tir import TensorIntrin

from tests.schedules.kernel_testing import (
    COMPILED,
    apply_epilogue,
    build,
    epilogue_inputs,
    make_target,
    run,
)
from tvmquant.schedules import conv2d, x86_intrinsics
from tvmquant.schedules.conv2d import Conv2DSpec, Tiling
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import (
    PMADDWD_256,
    PMADDWD_512,
    VNNI_256,
    VNNI_512,
    DotProduct,
    dot_products,
)

NARROW = Epilogue("int32", "uint8", 0, 255)
WIDE_ADD = Epilogue("int64", "uint8", 4, 250, residual=True)
TABLE = Epilogue("int32", "uint8", 0, 255, table=True)
SHORT = Epilogue("int32", "int16", -32767, 32767)

LAYERS = {
    "3x3": Conv2DSpec(1, 8, 8, 16, 16, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW),
    "stem": Conv2DSpec(
        2, 9, 11, 3, 20, (7, 7), (2, 2), (3, 3, 3, 3), input_zero_point=7, epilogue=WIDE_ADD
    ),
    "pointwise": Conv2DSpec(1, 7, 7, 24, 40, epilogue=TABLE),
    "pointwise, ragged channels": Conv2DSpec(3, 5, 5, 10, 12),
    "strided pointwise": Conv2DSpec(1, 9, 8, 16, 32, (1, 1), (2, 2), epilogue=SHORT),
    "dilated": Conv2DSpec(
        1, 9, 9, 6, 32, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), input_zero_point=9, epilogue=NARROW
    ),
    "grouped": Conv2DSpec(
        1, 9, 9, 32, 64, (3, 3), (2, 2), (1, 1, 1, 1), groups=4, epilogue=NARROW
    ),
    "odd groups": Conv2DSpec(
        1, 9, 9, 12, 18, (3, 3), (2, 1), (1, 0, 1, 2), groups=3, epilogue=NARROW
    ),
    "dilated groups": Conv2DSpec(
        1, 9, 9, 6, 8, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), groups=2, input_zero_point=9,
        epilogue=NARROW,
    ),
    "row kernel": Conv2DSpec(1, 6, 17, 16, 24, (1, 7), (1, 1), (0, 3, 0, 3), epilogue=NARROW),
    "column kernel": Conv2DSpec(1, 17, 6, 16, 24, (7, 1), (1, 1), (3, 0, 3, 0), epilogue=NARROW),
    "valid": Conv2DSpec(1, 10, 10, 8, 16, (3, 3), epilogue=NARROW),
    "dense": Conv2DSpec(2, 1, 1, 130, 1001, epilogue=NARROW),
    "one output": Conv2DSpec(1, 5, 5, 4, 1, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW),
    "window larger than image": Conv2DSpec(
        1, 2, 2, 4, 8, (5, 5), (1, 1), (2, 2, 2, 2), epilogue=NARROW
    ),
}  # fmt: skip
DOTS = (VNNI_512, VNNI_256, PMADDWD_512, PMADDWD_256)


def accumulate(spec: Conv2DSpec, x: Any, weight: Any, bias: Any) -> Any:
    """Sum products tap by tap in int64."""
    top, left, bottom, right = spec.padding
    padded = np.pad(
        x.astype(np.int64),
        ((0, 0), (top, bottom), (left, right), (0, 0)),
        constant_values=spec.input_zero_point,
    )
    rows, columns = spec.out_height, spec.out_width
    per_group, group_inputs = spec.outputs // spec.groups, spec.channels // spec.groups
    acc = np.zeros((spec.batch, rows, columns, spec.outputs), np.int64)
    for ry in range(spec.kernel[0]):
        for rx in range(spec.kernel[1]):
            h, w = ry * spec.dilation[0], rx * spec.dilation[1]
            window = padded[
                :,
                h : h + (rows - 1) * spec.strides[0] + 1 : spec.strides[0],
                w : w + (columns - 1) * spec.strides[1] + 1 : spec.strides[1],
            ]
            for g in range(spec.groups):
                outputs = slice(g * per_group, (g + 1) * per_group)
                inputs = slice(g * group_inputs, (g + 1) * group_inputs)
                acc[..., outputs] += window[..., inputs] @ weight[outputs, ry, rx].T.astype(int)
    return acc + bias


def case(spec: Conv2DSpec, tiling: Tiling, seed: int = 0) -> tuple[list[Any], Any]:
    """Return the kernel's inputs and the expected output, extremes of both operands included."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (spec.batch, spec.height, spec.width, spec.channels), np.uint8)
    weight = rng.integers(
        -127, 128, (spec.outputs, *spec.kernel, spec.channels // spec.groups), np.int8
    )
    x.reshape(-1)[: x.size // 2] |= 0xF0
    weight[0], weight[-1] = 127, -127
    bias = rng.integers(-5000, 5000, spec.outputs).astype(np.int32)
    acc = accumulate(spec, x, weight, bias)
    length = conv2d.padded_outputs(spec, tiling)

    def lengthen(v: Any) -> Any:
        return np.concatenate([v, np.zeros(length - v.size, v.dtype)])

    viewed = x.reshape(conv2d.input_shape(spec, tiling))
    inputs = [viewed, conv2d.pack_weight(weight, spec, tiling), lengthen(bias)]
    epilogue = spec.epilogue
    if epilogue is None:
        return inputs, acc.astype(np.int32)
    vectors = epilogue_inputs(rng, epilogue, spec.outputs, int(np.abs(acc).max()))
    inputs += [lengthen(vectors[k]) for k in ("multiplier", "offset", "shift")]
    residual, table = None, None
    if epilogue.residual:
        values = rng.integers(0, 256, acc.shape).astype(spec.residual_dtype)
        factor = rng.integers(1, 1 << 19, spec.outputs).astype(epilogue.compute_dtype)
        residual = (values, factor)
        inputs += [values, lengthen(factor)]
    if epilogue.table:
        table = rng.integers(0, 256, 256).astype(epilogue.out_dtype)
        inputs.append(table)
    return inputs, apply_epilogue(epilogue, acc, **vectors, residual=residual, table=table)


@pytest.mark.parametrize("mcpu", ["haswell", "x86-64"])
@pytest.mark.parametrize("name", LAYERS)
def test_default_tiling_is_exact(name: str, mcpu: str) -> None:
    target = make_target(mcpu)
    spec = LAYERS[name].flattened()
    tiling = conv2d.target_tiling(spec, target, threads=2)
    inputs, expected = case(spec, tiling)
    np.testing.assert_array_equal(run(conv2d.kernel(spec, tiling), target, inputs), expected)


@pytest.fixture
def plain_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every dot product run as its description: schedules for any processor run anywhere."""

    def register(dot: DotProduct) -> str:
        name = f"tvmquant.test.{dot.name}"
        if TensorIntrin.get(name, allow_missing=True) is None:
            description = x86_intrinsics.describe(dot)
            TensorIntrin.register(name, description, description)
        return name

    monkeypatch.setattr(x86_intrinsics, "intrinsic", register)


@pytest.mark.usefixtures("plain_instructions")
@pytest.mark.parametrize("dot", DOTS, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["3x3", "stem", "pointwise", "grouped", "dense"])
def test_schedules_of_other_processors_are_exact(name: str, dot: DotProduct) -> None:
    spec = LAYERS[name].flattened()
    generic = dot_products(make_target("x86-64"))[-1]
    tiling = conv2d.default_tiling(spec, (dot, generic), threads=4)
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


@pytest.mark.parametrize(
    ("target", "instruction"),
    list(zip(COMPILED, ["vpmaddwd", "vpdpbusd", None], strict=True)),
    ids=["avx512bw", "vnni", "aarch64"],
)
def test_uses_the_intended_instruction(target: dict[str, Any], instruction: str | None) -> None:
    llvm = make_target(target)
    spec = Conv2DSpec(1, 14, 14, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW)
    tiling = conv2d.target_tiling(spec, llvm, threads=2)
    assembly = build(conv2d.kernel(spec, tiling), llvm).inspect_source("asm")
    if instruction is None:
        assert tiling.dot.name == "generic"
        return
    used = [line.split() for line in assembly.splitlines() if f"\t{instruction}" in line]
    assert len(used) >= tiling.column_tile * tiling.channel_tile
    assert all("zmm" in " ".join(words) for words in used)


def test_accumulators_stay_in_registers() -> None:
    """The loop over input channels of the VNNI kernel stores nothing."""
    llvm = make_target("znver4")
    spec = Conv2DSpec(1, 14, 14, 256, 256, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW)
    tiling = conv2d.target_tiling(spec, llvm, threads=2)
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
        tiling = conv2d.target_tiling(spec, target, threads)
        assert spec.out_height % tiling.row_block == 0
        assert (spec.out_height // tiling.row_block) % threads == 0
