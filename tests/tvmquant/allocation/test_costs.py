import math

import pytest

from tests.tvmquant.allocation.test_allocate import layer
from tvmquant.allocation import layer_bops, layer_bytes
from tvmquant.allocation.costs import Costs
from tvmquant.bit_choice import W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import AllocationError


def test_bytes_of_weights_groups_and_channels():
    item = layer("l", weights=1000)
    assert layer_bytes(item, W8A8) == 1000 + 160
    assert layer_bytes(item, W4A8) == 500 + 160
    assert layer_bytes(item, BitChoice.parse("w4a8g32")) == 500 + 32 + 160
    assert layer_bytes(layer("l", weights=7), W4A8) == 4 + 160


def test_bops_are_of_both_factors():
    item = layer("l", macs=1000)
    assert [layer_bops(item, c) for c in (W8A8, W4A8, W4A4)] == [64_000, 32_000, 16_000]


def test_totals_of_latency_have_a_fixed_part():
    layers = [layer("a"), layer("b")]
    costs = Costs({"a": {"w8a8": 1.0}, "b": {"w4a8": 2.0}}, 0.5)
    assert costs.total("latency", layers, {"a": W8A8, "b": W4A8}) == 3.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_latencies_must_be_numbers(value):
    with pytest.raises(AllocationError, match=r"layer 'a': its latency with w8a8 is .* ms"):
        Costs({"a": {"w8a8": value}}).of("latency", layer("a"), W8A8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_fixed_part_must_be_a_number(value):
    with pytest.raises(AllocationError, match="latency of what is no layer"):
        Costs({}, value)
