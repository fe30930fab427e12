"""Depthwise convolutions against numpy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.s_tir import TensorIntrin

from tests.pairwise import pairwise
from tests.schedules import kernel_testing as kt
from tests.schedules.random_windows import EXAMPLES, windows
from tvmquant.machine import Machine
from tvmquant.schedules import depthwise_conv2d as depthwise
from tvmquant.schedules import isa
from tvmquant.schedules.depthwise_spec import window_products
from tvmquant.schedules.depthwise_tiling import UNROLLED
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa.taps import describe
from tvmquant.schedules.isa.x86 import PMADDWD_512, VNNI_256, VNNI_512

TARGETS = [kt.NATIVE, *kt.EXECUTED]
Spec = depthwise.DepthwiseConv2DSpec
SPECS = [
    Spec(1, 14, 14, 32, padding=(1, 1, 1, 1)),
    Spec(2, 9, 11, 24, padding=(0, 0, 1, 1), strides=(2, 2), input_zero_point=131),
    Spec(1, 7, 7, 19, kernel=(5, 5), padding=(2, 2, 2, 2), input_zero_point=7),
    Spec(1, 8, 10, 3, kernel=(3, 2), strides=(1, 2), padding=(1, 0, 1, 1)),
    Spec(1, 12, 13, 40, padding=(2, 3, 2, 3), dilation=(2, 3)),
    Spec(1, 12, 13, 16, dilation=(1, 2), input_zero_point=255),
    Spec(2, 6, 6, 9, multiplier=2, padding=(1, 1, 1, 1), input_zero_point=3),
    Spec(1, 5, 1, 8, kernel=(1, 1)),
    Spec(1, 1, 9, 48, kernel=(1, 7), padding=(0, 3, 0, 3)),
    Spec(2, 9, 11, 32, padding=(0, 0, 1, 1), strides=(2, 2), input_zero_point=131),
    Spec(1, 13, 12, 48, kernel=(5, 5), padding=(2, 1, 2, 2), strides=(2, 2), input_zero_point=9),
]

EPILOGUES = [
    Epilogue("int32", "uint8", 0, 255),
    Epilogue("int64", "uint8", 3, 250, residual=True),
    Epilogue("int64", "int16", 0, 255, residual=True, table=True),
]


def accumulate(x, weight, bias, spec):
    """Return the accumulators, int64."""
    top, left, bottom, right = spec.padding
    padded = np.pad(
        np.repeat(x.astype(np.int64), spec.multiplier, axis=3),
        ((0, 0), (top, bottom), (left, right), (0, 0)),
        constant_values=spec.input_zero_point,
    )
    total = np.zeros((spec.batch, spec.out_height, spec.out_width, spec.outputs), np.int64) + bias
    for i in range(spec.kernel[0]):
        for j in range(spec.kernel[1]):
            rows = i * spec.dilation[0] + np.arange(spec.out_height) * spec.strides[0]
            columns = j * spec.dilation[1] + np.arange(spec.out_width) * spec.strides[1]
            total += padded[:, rows][:, :, columns] * weight[:, i, j].astype(np.int64)
    return total


def arguments(spec, tiling, extreme=False):
    """Return the kernel's inputs and the expected output; extreme: the largest magnitudes."""
    rng = np.random.default_rng(41)
    shape = (spec.batch, spec.height, spec.width, spec.channels)
    x = rng.integers(0, 256, shape).astype(np.uint8)
    weight = rng.integers(-128, 128, (spec.outputs, *spec.kernel)).astype(np.int8)
    if extreme:
        x[:] = 255
        weight[:] = np.where(np.arange(spec.outputs) % 2, 127, -128)[:, None, None]
    bias = rng.integers(-5000, 5000, spec.outputs).astype(np.int32)
    padded = depthwise.padded_outputs(spec, tiling)

    def pad(vector):
        padding = np.zeros(padded - len(vector), vector.dtype)
        return depthwise.pack_vector(np.concatenate([vector, padding]), spec, tiling)

    expected = accumulate(x, weight, bias, spec)
    inputs = [x, depthwise.pack_weight(weight, spec, tiling), pad(bias)]
    epilogue = spec.epilogue
    if epilogue is None:
        return inputs, expected
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
    return inputs, kt.apply_epilogue(
        epilogue, expected, **parameters, residual=residual, table=table
    )


def check(spec, target, tiling=None, extreme=False):
    target = kt.make_target(target)
    tiling = tiling or depthwise.default_tiling(spec, Machine.of(target, 2))
    inputs, expected = arguments(spec, tiling, extreme)
    found = kt.run(depthwise.kernel(spec, tiling), target, inputs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_accumulator(spec, target):
    check(spec, target)


@pytest.mark.parametrize("target", TARGETS)
def test_largest_magnitudes_do_not_saturate(target):
    check(SPECS[0], target, extreme=True)


@pytest.mark.parametrize(*pairwise(spec=SPECS[:3] + SPECS[6:7], epilogue=EPILOGUES, target=TARGETS))
def test_epilogue(spec, epilogue, target):
    check(replace(spec, epilogue=epilogue), target)


@settings(max_examples=EXAMPLES)
@given(st.data(), windows())
def test_random_shapes(data, window):
    spec = Spec(channels=data.draw(st.integers(1, 40)), **window)
    spec = replace(spec, multiplier=data.draw(st.sampled_from([1, 1, 2, 3])))
    check(replace(spec, epilogue=data.draw(st.sampled_from([None, *EPILOGUES]))), "haswell")


@pytest.mark.parametrize(
    *pairwise(
        vectors_and_rows=[(1, 1), (2, 2), (1, 4), (2, 3)], column_tile=[1, 3, 5], stride=[1, 2, 3]
    )
)
def test_any_tiling_gives_the_same(vectors_and_rows, column_tile, stride):
    vectors, row_tile = vectors_and_rows
    spec = replace(SPECS[0], epilogue=Epilogue("int32", "uint8", 0, 255), height=11, width=11)
    spec = replace(spec, strides=(stride, stride))
    default = depthwise.default_tiling(spec, Machine.of("haswell", 2))
    tiling = replace(
        default,
        vectors=vectors,
        row_tile=row_tile,
        column_tile=column_tile,
        row_block=2,
        channel_block=1,
    )
    check(spec, "haswell", tiling)


@pytest.mark.parametrize(
    *pairwise(
        dot=[PMADDWD_512, VNNI_256, VNNI_512], vectors=[1, 2], channels=[19, 32], stride=[1, 2]
    )
)
def test_schedule_of_other_instructions_by_their_description(
    dot, vectors, channels, stride, monkeypatch
):
    """What cannot run here runs with the descriptions of its intrinsics instead."""
    spec = replace(SPECS[2], kernel=(3, 3), padding=(1, 1, 1, 1), channels=channels)

    def described(*parameters, **options):
        description = describe(*parameters, **options)
        name = f"test.{dot.name}_{vectors}_{options}"
        TensorIntrin.register(name, description, description, override=True)
        return name

    monkeypatch.setattr(isa, "taps_intrinsic", described)
    spec = replace(spec, strides=(stride, stride))
    check(spec, kt.NATIVE, depthwise.Tiling(dot, vectors, 2, 4, 2, 1))


@pytest.mark.parametrize("target", kt.COMPILED, ids=str)
def test_compiles_for_other_targets(target):
    target = kt.make_target(target)
    spec = replace(SPECS[0], epilogue=Epilogue("int32", "uint8", 0, 255))
    tiling = depthwise.default_tiling(spec, Machine.of(target, 4))
    kt.build(depthwise.kernel(spec, tiling), target)


@pytest.mark.parametrize("channels", [88, 120, 96])
def test_no_vector_reaches_beyond_the_channels_where_another_fits(channels):
    target = kt.make_target("haswell")
    spec = Spec(1, 14, 14, channels, padding=(1, 1, 1, 1))
    tiling = depthwise.default_tiling(spec, Machine.of(target, 1))
    assert tiling.vectors == (2 if channels == 96 else 1)
    assert depthwise.padded_outputs(spec, tiling) == channels


@pytest.mark.parametrize(("kernel", "products"), [(1, 1), (2, 2), (3, 5), (5, 13), (7, 25)])
def test_an_odd_window_multiplies_no_row_of_zeros(kernel, products):
    spec = Spec(1, 14, 14, 32, kernel=(kernel, kernel), strides=(2, 2))
    tiling = depthwise.Tiling(PMADDWD_512, 1, 1, 4, 1, 1)
    assert window_products(spec, tiling) == products


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_large_windows_unroll_fewer_columns(kernel):
    pad = kernel // 2
    spec = Spec(1, 28, 28, 96, kernel=(kernel, kernel), padding=(pad, pad, pad, pad))
    tiling = depthwise.default_tiling(spec, Machine.of("haswell", 1))
    products = window_products(spec, tiling) * tiling.row_tile * tiling.vectors
    assert products * tiling.column_tile <= UNROLLED
    check(spec, "haswell")
