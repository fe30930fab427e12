"""Transposed convolutions against the definition: a convolution of the stretched input."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedules import kernel_testing as kt
from tests.schedules.random_windows import EXAMPLES, windows
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d_transpose as transpose
from tvmquant.schedules.epilogue import Epilogue

TARGETS = [kt.NATIVE, *kt.EXECUTED]
Spec = transpose.Conv2DTransposeSpec
SPECS = [
    Spec(1, 7, 6, 32, 16, input_zero_point=9),
    Spec(2, 5, 6, 12, 24, (4, 4), (2, 2), (1, 1, 1, 1), input_zero_point=3),
    Spec(1, 6, 7, 16, 10, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), input_zero_point=128),
    Spec(1, 5, 4, 5, 3, (3, 4), (3, 2), (0, 2, 1, 0), (2, 1), (2, 3), input_zero_point=200),
    Spec(1, 4, 5, 12, 18, (3, 2), (2, 1), (1, 0, 1, 1), groups=3, input_zero_point=1),
    Spec(1, 4, 4, 32, 32, (3, 3), (2, 2), (1, 1, 1, 1), groups=2),
    Spec(1, 3, 3, 8, 8, (1, 1), (3, 3), input_zero_point=7),  # phases without taps
    Spec(1, 9, 9, 6, 6, (3, 3), (1, 1), (1, 1, 1, 1), groups=6),
    Spec(1, 4, 4, 4, 5, (2, 2), (2, 2), dilation=(2, 2), input_zero_point=5),
]

EPILOGUES = [
    Epilogue("int32", "uint8", 0, 255),
    Epilogue("int64", "int16", 0, 255, residual=True, table=True),
]


def accumulate(x, weight, bias, spec):
    """Return the accumulators, int64: every product goes where the definition sends it."""
    (stride_h, stride_w), (dilation_h, dilation_w) = spec.strides, spec.dilation
    out_h, out_w = spec.out_size
    steps = x.astype(np.int64) - spec.input_zero_point
    total = np.zeros((spec.batch, out_h + 99, out_w + 99, spec.outputs), np.int64)
    outputs, inputs = spec.outputs // spec.groups, spec.channels // spec.groups
    for group in range(spec.groups):
        o = slice(group * outputs, (group + 1) * outputs)
        part = steps[..., group * inputs : (group + 1) * inputs]
        for ry in range(spec.kernel[0]):
            for rx in range(spec.kernel[1]):
                rows = np.arange(spec.height) * stride_h + ry * dilation_h
                columns = np.arange(spec.width) * stride_w + rx * dilation_w
                product = part @ weight[o, ry, rx].astype(np.int64).T
                total[:, rows[:, None], columns[None, :], o] += product
    top, left = spec.padding[:2]
    total = total[:, top : top + out_h, left : left + out_w]
    # the zero point meets every weight everywhere
    return total + bias + spec.input_zero_point * weight.astype(np.int64).sum(axis=(1, 2, 3))


def check(spec, target, tiling=None):
    rng = np.random.default_rng(51)
    target = kt.make_target(target)
    tiling = tiling or transpose.default_tiling(spec, Machine.of(target, 2))
    x = rng.integers(0, 256, (spec.batch, spec.height, spec.width, spec.channels)).astype(np.uint8)
    shape = (spec.outputs, *spec.kernel, spec.channels // spec.groups)
    weight = rng.integers(-128, 128, shape).astype(np.int8)
    bias = rng.integers(-5000, 5000, spec.outputs).astype(np.int32)
    padded = transpose.padded_outputs(spec, tiling)

    def pad(vector):
        return np.concatenate([vector, np.zeros(padded - len(vector), vector.dtype)])

    expected = accumulate(x, weight, bias, spec)
    inputs = [
        x,
        transpose.pack_weight(weight, spec, tiling),
        transpose.pack_bias(bias, weight, spec, tiling),
    ]
    epilogue = spec.epilogue
    if epilogue is not None:
        parameters = kt.epilogue_inputs(rng, epilogue, spec.outputs, int(abs(expected).max()))
        inputs += [pad(v) for v in parameters.values()]
        residual = table = None
        if epilogue.residual:
            factor = rng.integers(1, 99, spec.outputs).astype(epilogue.compute_dtype)
            residual = (rng.integers(0, 256, expected.shape).astype(np.uint8), factor)
            inputs += [residual[0], pad(factor)]
        if epilogue.table:
            table = rng.permutation(256).astype(epilogue.out_dtype)
            inputs.append(table)
        expected = kt.apply_epilogue(
            epilogue, expected, **parameters, residual=residual, table=table
        )
    found = kt.run(transpose.kernel(spec, tiling), target, inputs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_accumulator(spec, target):
    check(spec, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spec", SPECS[:3], ids=range(3))
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=["int32", "table"])
def test_epilogue(spec, epilogue, target):
    check(replace(spec, epilogue=epilogue), target)


@settings(max_examples=EXAMPLES)
@given(st.data(), windows(transposed=True))
def test_random_shapes(data, window):
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = (groups * data.draw(st.integers(1, 20)) for _ in range(2))
    spec = Spec(channels=channels, outputs=outputs, groups=groups, **window)
    # one row or column more where the stride leaves room for it
    output_padding = tuple(data.draw(st.integers(0, s - 1)) for s in spec.strides)
    spec = replace(spec, output_padding=output_padding)
    check(replace(spec, epilogue=data.draw(st.sampled_from([None, *EPILOGUES]))), "haswell")


@pytest.mark.parametrize("fused", [True, False])
def test_fused_and_second_pass_give_the_same(fused):
    spec = replace(SPECS[0], epilogue=Epilogue("int32", "uint8", 0, 255))
    tiling = transpose.default_tiling(spec, Machine.of("haswell", 2))
    assert tiling.fused
    check(spec, "haswell", replace(tiling, fused=fused))


@pytest.mark.parametrize("target", kt.COMPILED, ids=str)
def test_compiles_for_other_targets(target):
    target = kt.make_target(target)
    spec = replace(SPECS[1], epilogue=Epilogue("int64", "uint8", 0, 255))
    kt.build(transpose.kernel(spec, transpose.default_tiling(spec, Machine.of(target, 4))), target)
