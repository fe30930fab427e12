"""Convolutions of every kind, random operands for them, and what they should give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.s_tir import TensorIntrin

from tests.schedules.kernel_testing import apply_epilogue, epilogue_inputs
from tvmquant.schedules import conv2d, isa
from tvmquant.schedules.conv2d import Conv2DSpec, Tiling
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct, Stage
from tvmquant.schedules.isa.stages import describe

NARROW = Epilogue("int32", "uint8", 0, 255)
WIDE_ADD = Epilogue("int64", "uint8", 4, 250, residual=True)
TABLE = Epilogue("int32", "uint8", 0, 255, table=True)
SHORT = Epilogue("int32", "int16", -32767, 32767)
# what a residual of each type spans
RESIDUALS = {"uint8": (0, 255), "int16": (-32767, 32767), "int32": (-(1 << 20), 1 << 20)}

LAYERS = {
    "3x3": Conv2DSpec(1, 8, 8, 16, 16, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW),
    "stem": Conv2DSpec(
        2, 9, 11, 3, 20, (7, 7), (2, 2), (3, 3, 3, 3), input_zero_point=7, epilogue=WIDE_ADD
    ),
    "stem, rows joined": Conv2DSpec(
        2, 9, 11, 3, 28, (7, 7), (2, 2), (3, 3, 3, 3), input_zero_point=7, epilogue=WIDE_ADD
    ),
    "whole words joined": Conv2DSpec(
        1, 9, 8, 2, 32, (4, 5), (1, 2), (0, 2, 3, 1), input_zero_point=200, epilogue=NARROW
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


def case(spec: Conv2DSpec, tiling: Tiling, seed: int = 0, qmax: int = 255) -> tuple[list[Any], Any]:
    """Return the kernel's inputs and the expected output, extremes of both operands included.

    Activations are in [0, qmax]. The weights' range is that of ``spec.w_bits``; of 8-bit ones that
    a chain multiplies, neighbours add up to 128 at most.
    """
    rng = np.random.default_rng(seed)
    shape = (spec.batch, spec.height, spec.width, spec.channels)
    x = rng.integers(0, qmax + 1, shape, np.uint8)
    x.reshape(-1)[: x.size // 2] |= qmax & 0xF0 or qmax
    largest = 7 if spec.w_bits == 4 else 64 if spec.chain else 127
    window = (spec.outputs, *spec.kernel, spec.channels // spec.groups)
    weight = rng.integers(-largest, largest + 1, window, np.int8)
    weight[0], weight[-1] = largest, -largest
    bias = rng.integers(-5000, 5000, spec.outputs).astype(np.int32)
    length = conv2d.padded_outputs(spec, tiling)

    def lengthen(v: Any) -> Any:
        return np.concatenate([v, np.zeros(length - v.size, v.dtype)])

    viewed = x.reshape(conv2d.input_shape(spec, tiling))
    inputs = [viewed, conv2d.pack_weight(weight, spec, tiling)]
    effective = weight.astype(np.int64)
    if spec.w_group:
        rows = effective.reshape(spec.outputs, spec.run_rows, -1)
        groups = -(-rows.shape[2] // spec.w_group)
        scale = rng.integers(1, 17, (*rows.shape[:2], groups)).astype(np.uint8)
        rows = rows * np.repeat(scale, spec.w_group, axis=2)[:, :, : rows.shape[2]]
        effective = rows.reshape(window)
        inputs.append(conv2d.pack_scale(scale, spec, tiling))
    inputs.append(conv2d.pack_bias(bias, effective.astype(np.int32), spec, tiling))
    acc = accumulate(spec, x, effective, bias)
    acc = acc.reshape(conv2d.output_shape(spec, tiling))
    epilogue = spec.epilogue
    if epilogue is None:
        return inputs, acc.astype(np.int32)
    vectors = epilogue_inputs(rng, epilogue, spec.outputs, int(np.abs(acc).max()))
    inputs += [lengthen(vectors[k]) for k in ("multiplier", "offset", "shift")]
    residual, table = None, None
    if epilogue.residual:
        low, high = RESIDUALS[spec.residual_dtype]
        values = rng.integers(low, high + 1, acc.shape).astype(spec.residual_dtype)
        factor = rng.integers(1, 1 << 19, spec.outputs).astype(epilogue.compute_dtype)
        residual = (values, factor)
        inputs += [values, lengthen(factor)]
    if epilogue.table:
        table = rng.integers(0, 256, 256).astype(epilogue.out_dtype)
        inputs.append(table)
    return inputs, apply_epilogue(epilogue, acc, **vectors, residual=residual, table=table)


def use_plain_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every intrinsic run as its description: schedules for any processor run anywhere."""

    def register(dot: DotProduct, stage: Stage = Stage.DOT) -> str:
        name = f"tvmquant.test.{dot.name}.{stage.value}"
        if TensorIntrin.get(name, allow_missing=True) is None:
            description = describe(dot, stage)
            TensorIntrin.register(name, description, description)
        return name

    monkeypatch.setattr(isa, "intrinsic", register)
