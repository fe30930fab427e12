import re

import pytest

from tests.tvmquant.allocation.test_allocate import layer, network, omegas, times
from tvmquant.allocation import Budget, allocate, pareto
from tvmquant.bit_choice import W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import AllocationError


def refused(*arguments, **options):
    with pytest.raises(AllocationError) as caught:
        allocate(*arguments, **options)
    return str(caught.value)


def test_the_least_that_is_named_can_be_asked_for():
    layers = [layer(f"l{i}", weights=12_345 + 7 * i) for i in range(5)]
    message = refused(layers, omegas(layers), size="1kB")
    least = re.search(r"the least is (\S+) \((\S+) of w8a8\)", message)
    for text in least.groups():
        found = allocate(layers, omegas(layers), size=text)
        assert found.totals["size"] <= Budget.parse(text, "size").limit(found.reference["size"])


def test_of_three_budgets_those_that_conflict_are_named():
    layers = network(2)
    latency = {item.id: {"w8a8": 1.0, "w4a8": 3.0, "w4a4": 3.0} for item in layers}
    options = {"latency": latency, "latency_budget": "1x", "size": "0.9x"}
    message = refused(layers, omegas(layers), **options, bops="1x")
    assert message.startswith("latency and size hold alone but not together")
    both = refused(layers, omegas(layers), **options, bops="0.9x")
    assert "latency and size hold alone" in both
    assert "latency and bops hold alone" in both


def test_pins_are_said_to_narrow_what_can_be_reached():
    layers = [layer("a", position="first"), layer("b"), layer("c")]
    message = refused(layers, omegas(layers), size="0.6x", pinned={"b": W8A8})
    assert message.endswith("with 1 layers pinned and the first and last layers (a) at w8a8")


def test_a_layer_that_goes_with_another():
    layers = [layer("a", group="g"), layer("b", group="g")]
    latency = {"a": {"w8a8": 9.0, "w4a4": 1.0}, "b": {"w8a8": 1.0, "w4a4": 1.1}}
    found = allocate(layers, omegas(layers), latency=latency, latency_budget="0.5x")
    assert set(found.choices.values()) == {W4A4}
    assert found.reasons["a"].startswith("saves 8ms, adds 2.99")
    assert found.reasons["b"] == (
        "goes with a, which reads the same activation, adds 5.99, "
        "no faster here: w4a4 takes 1.1ms, w8a8 1ms"
    )


def test_a_layer_that_is_smaller_but_no_faster():
    layers = network(1)
    latency = {"l0": {"w8a8": 0.3, "w4a8": 0.31}}
    found = allocate(layers, omegas(layers), latency=latency, size="0.9x")
    assert found.reasons["l0"] == (
        "saves 500B, adds 0.99, no faster here: w4a8 takes 310us, w8a8 300us"
    )


def test_layers_kept_wide_together():
    layers = [layer("a", group="g"), layer("b", group="g"), layer("c")]
    latency = {item.id: {"w8a8": 1.0, "w4a8": 1.0, "w4a4": 0.5} for item in layers}
    omega = omegas(layers)
    omega["c"] = {"w8a8": 0.0, "w4a8": 0.0, "w4a4": 0.1}
    found = allocate(layers, omega, latency=latency, latency_budget="0.9x")
    assert found.choices == {"a": W8A8, "b": W8A8, "c": W4A4}
    assert found.reasons["a"] == "tied to b: narrower activations would add 8.98 in all"


def test_why_there_is_no_other_choice():
    layers = network(2)
    only = allocate(layers, omegas(layers), choices=[W8A8])
    assert set(only.reasons.values()) == {"no other choice is allowed"}
    unmeasured = allocate(layers, omegas(layers), latency={i.id: {"w8a8": 1.0} for i in layers})
    assert set(unmeasured.reasons.values()) == {"no other choice was measured"}
    free = allocate(layers, omegas(layers))
    assert free.reasons["l0"] == "no budget asks for less: w4a8 would add 0.99"


def test_the_extremes_keep_pins():
    layers = network(2)
    found = allocate(layers, omegas(layers), latency=times(layers), pinned={"l0": W4A8})
    assert found.extremes["latency"] == pytest.approx((0.9 + 0.5, 0.9 + 1.0))
    assert found.pinned == {"l0"}


def test_a_frontier_within_another_budget():
    layers = network(5)
    seen = []
    plans = pareto(
        layers, omegas(layers), latency=times(layers), size="0.8x", points=6,
        progress=lambda done, all_: seen.append((done, all_)),
    )  # fmt: skip
    assert all(plan.totals["size"] <= 0.8 * plan.reference["size"] for plan in plans)
    assert len(plans) > 2
    assert seen == [(i, 6) for i in range(1, 7)]
    with pytest.raises(AllocationError, match="size cannot be"):
        pareto(layers, omegas(layers), latency=times(layers), size="0.1x")
    with pytest.raises(AllocationError, match="frontier over latency needs measured"):
        pareto(layers, omegas(layers))


W1A1 = BitChoice.parse("w1a1")


def test_why_layers_have_one_bit_or_have_not():
    layers = network(3)
    perturbation = {
        "l0": {"w8a8": 0.0, "w1a1": 0.5},
        "l1": {"w8a8": 0.0, "w1a1": 7.0},
        "l2": {"w8a8": 0.0, "w1a1": 0.0},
    }
    latency = {item.id: {"w8a8": 4.0, "w1a1": 1.0} for item in layers}
    latency["l2"]["w1a1"] = 4.0
    found = allocate(
        layers, perturbation, latency=latency, latency_budget="9ms", choices=[W8A8, W1A1]
    )
    assert (found.choices["l0"], found.choices["l1"]) == (W1A1, W8A8)
    assert found.reasons["l0"].startswith("saves 3ms, adds 0.5")
    assert found.reasons["l1"].endswith("; one bit would add 7, as measured")


def test_one_bit_that_is_no_faster():
    layers = network(1)
    latency = {"l0": {"w8a8": 1.0, "w1a1": 1.0}}
    perturbation = {"l0": {"w8a8": 0.0, "w1a1": 3.0}}
    found = allocate(layers, perturbation, latency=latency, choices=[W8A8, W1A1])
    assert found.reasons["l0"].endswith("; one bit buys nothing here: w1a1 takes 1ms, w8a8 1ms")


def test_choices_that_the_model_brings_are_kept():
    layers = [*network(2), layer("binary", imported=W1A1)]
    perturbation = omegas(layers) | {"binary": {"w1a1": 0.0}}
    found = allocate(layers, perturbation, size="0.8x")
    assert found.choices["binary"] == W1A1
    assert found.reasons["binary"] == "w1a1 in the model"
    assert found.totals["size"] <= 0.8 * found.reference["size"]
