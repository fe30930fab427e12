"""Every tiling of a space computes its layer exactly: a sample of each, against the default."""

from dataclasses import replace

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d, conv2d_transpose, depthwise_conv2d, space
from tvmquant.schedules.conv2d import Conv2DSpec
from tvmquant.schedules.conv2d_transpose import Conv2DTransposeSpec
from tvmquant.schedules.depthwise_conv2d import DepthwiseConv2DSpec
from tvmquant.schedules.epilogue import Epilogue

SAMPLE = 6
FULL = Epilogue("int32", "uint8", 0, 255)
SPECS = [
    ("conv2d", Conv2DSpec(1, 1, 1, 20, 24, (1, 1))),
    ("conv2d", Conv2DSpec(1, 1, 35, 16, 40, (1, 1))),
    ("conv2d", Conv2DSpec(2, 9, 7, 12, 20, (3, 3), (2, 2), (1, 1, 1, 1), input_zero_point=3)),
    ("conv2d", Conv2DSpec(1, 8, 9, 16, 24, (3, 3), (1, 1), (1, 1, 1, 1), chain=4)),
    ("conv2d", Conv2DSpec(1, 6, 6, 32, 32, (3, 3), groups=2)),
    ("depthwise_conv2d", DepthwiseConv2DSpec(1, 9, 8, 24, padding=(1, 1, 1, 1))),
    ("depthwise_conv2d", DepthwiseConv2DSpec(1, 9, 8, 19, 1, (5, 5), (2, 2), (2, 2, 2, 2))),
    ("depthwise_conv2d", DepthwiseConv2DSpec(1, 9, 8, 16, dilation=(2, 2))),
    ("conv2d_transpose", Conv2DTransposeSpec(1, 5, 6, 12, 24)),
    ("conv2d_transpose", Conv2DTransposeSpec(1, 5, 4, 8, 18, (3, 3), (2, 2), (1, 1, 1, 1))),
    ("conv2d_transpose", Conv2DTransposeSpec(1, 4, 4, 32, 32, (3, 3), groups=2)),
]


def inputs_of(family, spec, tiling):
    """Return the packed inputs of a kernel without an epilogue: the same layer for any tiling."""
    rng = np.random.default_rng(7)
    x = rng.integers(0, 256, (spec.batch, spec.height, spec.width, spec.channels)).astype(np.uint8)
    bias = rng.integers(-5000, 5000, spec.outputs).astype(np.int32)
    # so small that four sums of two products fit 16 bits
    low, high = (-15, 16) if getattr(spec, "chain", 0) else (-128, 128)
    if family == "depthwise_conv2d":
        weight = rng.integers(low, high, (spec.outputs, *spec.kernel)).astype(np.int8)
        padded = depthwise_conv2d.padded_outputs(spec, tiling)
        packed = depthwise_conv2d.pack_weight(weight, spec, tiling)
    else:
        shape = (spec.outputs, *spec.kernel, spec.channels // spec.groups)
        weight = rng.integers(low, high, shape).astype(np.int8)
        if family == "conv2d_transpose":
            biases = conv2d_transpose.pack_bias(bias, weight, spec, tiling)
            return [x, conv2d_transpose.pack_weight(weight, spec, tiling), biases]
        x = x.reshape(conv2d.input_shape(spec, tiling))
        padded = conv2d.padded_outputs(spec, tiling)
        packed = conv2d.pack_weight(weight, spec, tiling)
    return [x, packed, np.pad(bias, (0, padded - spec.outputs))]


@pytest.mark.parametrize(("name", "spec"), SPECS)
@pytest.mark.parametrize("target_name", [kt.NATIVE, "x86-64"])
def test_tilings_compute_what_the_default_does(name, spec, target_name):
    target = kt.make_target(target_name)
    family = space.family(name)
    default, *others = family.tilings(spec, Machine.of(target, 2))
    assert default == family.default(spec, Machine.of(target, 2))
    expected = kt.run(family.kernel(spec, default), target, inputs_of(name, spec, default))
    chosen = np.random.default_rng(3).permutation(len(others))[:SAMPLE]
    for tiling in [others[i] for i in chosen]:
        found = kt.run(family.kernel(spec, tiling), target, inputs_of(name, spec, tiling))
        same = found.reshape(expected.shape)  # flat tilings give an image as one row
        np.testing.assert_array_equal(same, expected, str(tiling))


@pytest.mark.parametrize(("name", "spec"), SPECS)
def test_tilings_are_distinct_and_their_figures_make_sense(name, spec):
    target = kt.make_target("haswell")
    family = space.family(name)
    tilings = family.tilings(spec, Machine.of(target, 2))
    assert len(tilings) == len(set(tilings))
    for tiling in tilings:
        figures = family.figures(spec, tiling, 2)
        assert figures["work"] >= figures["useful"] > 0
        assert min(figures.values()) >= 1


def test_one_thread_has_no_parallel_loops_to_choose():
    for name, spec in SPECS:
        for tiling in space.family(name).tilings(spec, Machine.of("haswell", 1)):
            assert name == "conv2d" or not tiling.parallel


def test_timing_specs_drop_mere_values_only():
    spec = Conv2DSpec(1, 8, 8, 16, 16, input_zero_point=3, epilogue=replace(FULL, qmin=4, qmax=9))
    assert space.timing_spec(spec) == replace(spec, input_zero_point=0, epilogue=FULL)
    wide = replace(spec, epilogue=Epilogue("int64", "int16", -5, 5))
    assert space.timing_spec(wide).epilogue == Epilogue("int64", "int16", -(2**15), 2**15 - 1)
    assert space.timing_spec(replace(spec, epilogue=None)).epilogue is None
