"""What is proven about weights, and what groups have in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tvmquant.errors import QuantizationError
from tvmquant.formats import Uniform
from tvmquant.machine import Machine
from tvmquant.passes.store_weights import values_of
from tvmquant.schedules.conv2d import (
    Conv2DSpec,
    check_narrow,
    container_of,
    group_scale,
    pack_weight,
    provable_chain,
    target_dots,
    tilings,
    weight_layout,
)
from tvmquant.schedules.weight_layout import WeightLayout

# OHWI; of the last, kernels join the rows of the window
SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 9)
) | st.just((32, 3, 3, 3))


def spec_of(shape: tuple[int, ...], w_group: int = 0) -> Conv2DSpec:
    outputs, *kernel, channels = shape
    return Conv2DSpec(1, 9, 9, channels, outputs, tuple(kernel), w_group=w_group)


@given(
    arrays.arrays(np.int8, SHAPES, elements=st.integers(-127, 127)),
    st.integers(0, 255),
    st.integers(0, 255),
)
def test_chain_is_the_longest_power_of_two_that_fits(weight, first, second):
    qmin, qmax = min(first, second), max(first, second)
    spec = replace(spec_of(weight.shape), input_zero_point=qmin)
    chain = provable_chain(weight, spec, qmin, qmax)
    # the sums that any inputs can reach in one step
    runs = weight.reshape(len(weight), spec.run_rows, -1).astype(np.int64)
    runs = np.pad(runs, ((0, 0), (0, 0), (0, runs.shape[2] % 2)))
    products = np.stack([runs * qmin, runs * qmax])
    highest = products.max(0).reshape(-1, 2).sum(1).max()
    lowest = products.min(0).reshape(-1, 2).sum(1).min()

    def fits(count):
        return max(highest, 0) * count < 2**15 and min(lowest, 0) * count >= -(2**15)

    assert chain == 0 or (fits(chain) and chain & (chain - 1) == 0)
    assert chain == 128 or not fits(max(1, 2 * chain))


def test_padding_counts_as_input():
    weight = np.full((1, 1, 1, 2), 64, np.int8)
    assert provable_chain(weight, Conv2DSpec(1, 1, 1, 2, 1), 0, 15) == 16
    assert provable_chain(weight, Conv2DSpec(1, 1, 1, 2, 1, input_zero_point=255), 0, 15) == 1


@given(st.data(), SHAPES, st.sampled_from([4, 8, 32]))
def test_groups_have_the_multiplier_that_their_weights_have(data, shape, group):
    spec = spec_of(shape, group)
    counts = (shape[0], spec.run_rows, -(-spec.run // group))
    scale = data.draw(arrays.arrays(np.uint8, counts, elements=st.integers(1, 16)))
    spread = np.repeat(scale, group, axis=2)[:, :, : spec.run].reshape(shape).astype(np.int8)
    found = group_scale(spread, spec, "layer")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, scale)


@pytest.mark.parametrize("wrong", [2, 0])
def test_groups_of_several_multipliers_are_refused_by_name(wrong):
    multiplier = np.ones((2, 3, 1, 8), np.int8)
    multiplier[1, 2, 0, 5 if wrong else slice(4, 8)] = wrong
    with pytest.raises(QuantizationError, match=r"'conv7'.*group 1 .* row 2 of output channel 1"):
        group_scale(multiplier, spec_of(multiplier.shape, 4), "conv7")


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_are_read_in_the_next_container(bits):
    assert container_of(bits) == (4 if bits <= 4 else 8)


def test_weights_beyond_four_bits_are_refused_by_name():
    check_narrow(np.array([[[[-8, 7]]]], np.int8), "conv7")
    with pytest.raises(QuantizationError, match=r"'conv7'.*\[-9, 3\]"):
        check_narrow(np.array([[[[-9, 3]]]], np.int8), "conv7")


@pytest.mark.parametrize("w_bits", [4, 8])
@pytest.mark.parametrize("target", ["haswell", "skylake-avx512", "icelake-server"])
@pytest.mark.parametrize("shape", [(40, 3, 3, 20), (24, 3, 3, 3), (20, 1, 1, 70)], ids=str)
def test_layouts_say_where_weights_are(target: str, w_bits: int, shape: tuple[int, ...]) -> None:
    machine = Machine.of(target, 1)
    spec = replace(spec_of(shape), w_bits=w_bits)
    largest = 7 if w_bits == 4 else 127
    weight = np.random.default_rng(0).integers(-largest, largest + 1, shape).astype(np.int8)
    held = Uniform(w_bits, signed=True)
    seen = set()
    for tiling in tilings(spec, target_dots(spec, machine), machine)[::5]:
        packed, layout = pack_weight(weight, spec, tiling), weight_layout(spec, tiling)
        values = values_of(packed, held)
        assert layout.size == values.size
        np.testing.assert_array_equal(layout.unpacked(values), weight.reshape(len(weight), -1))
        assert np.count_nonzero(values) == np.count_nonzero(weight)
        assert WeightLayout.loads(layout.dumps()) == layout
        seen.add(layout)
    assert seen
