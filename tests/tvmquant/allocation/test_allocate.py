import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmquant.allocation import allocate, layer_bops, layer_bytes, pareto
from tvmquant.bit_choice import DEFAULT_CHOICES, W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import AllocationError
from tvmquant.formats import UINT8
from tvmquant.layers import Layer

G32 = BitChoice.parse("w4a8g32")


def layer(name, weights=1000, macs=100_000, group=None, position="", op="conv2d", **facts):
    edges = (f"{name}.x",)
    return Layer(name, op, macs, weights, 10, edges, group or name, position, **facts)


def network(count=4):
    return [layer(f"l{i}", weights=1000 * (i + 1)) for i in range(count)]


def omegas(layers, wide=0.01, narrow=1.0):
    """Every layer twice as sensitive as the one before."""
    return {
        item.id: {"w8a8": wide, "w4a8": narrow * 2**i, "w4a4": 3 * narrow * 2**i}
        for i, item in enumerate(layers)
    }


def times(layers):
    return {item.id: {"w8a8": 1.0, "w4a8": 0.9, "w4a4": 0.5} for item in layers}


@st.composite
def problems(draw):
    count = draw(st.integers(1, 5))
    values = st.floats(1e-6, 1e3)
    layers = [
        layer(
            f"l{i}",
            weights=draw(st.integers(1, 5000)),
            macs=draw(st.integers(1, 10**6)),
            group=draw(st.sampled_from([None, "shared"])),
        )
        for i in range(count)
    ]
    table = [
        {item.id: {str(c): draw(values) for c in DEFAULT_CHOICES} for item in layers}
        for _ in range(2)
    ]
    shares = {q: draw(st.none() | st.floats(0.3, 1.1)) for q in ("latency", "size", "bops")}
    return layers, *table, shares


@given(problems())
@settings(max_examples=40, deadline=None)
def test_no_plan_is_better(problem):
    layers, omega, latency, shares = problem
    costs = {
        "latency": lambda item, c: latency[item.id][str(c)],
        "size": layer_bytes,
        "bops": layer_bops,
    }
    limits = {
        q: share * sum(costs[q](item, W8A8) for item in layers)
        for q, share in shares.items()
        if share is not None
    }
    best = math.inf
    for plan in itertools.product(DEFAULT_CHOICES, repeat=len(layers)):
        widths = {}
        tied = all(
            widths.setdefault(item.group, c.activation.bits) == c.activation.bits
            for item, c in zip(layers, plan, strict=True)
        )
        kept = all(
            sum(costs[q](item, c) for item, c in zip(layers, plan, strict=True)) <= limit
            for q, limit in limits.items()
        )
        if tied and kept:
            best = min(best, sum(omega[item.id][str(c)]
                                 for item, c in zip(layers, plan, strict=True)))  # fmt: skip
    budgets = {
        {"latency": "latency_budget"}.get(q, q): f"{share!r}x"
        for q, share in shares.items()
        if share is not None
    }
    try:
        found = allocate(layers, omega, latency=latency, **budgets)
    except AllocationError:
        assert best == math.inf
        return
    largest = max(max(row.values()) for row in omega.values())
    assert found.perturbation <= best + 1e-4 * largest
    assert all(found.totals[q] <= limit * (1 + 1e-6) for q, limit in limits.items())
    widths = {}
    for item in layers:
        assert widths.setdefault(item.group, found.choices[item.id].activation.bits) == (
            found.choices[item.id].activation.bits
        )


def test_without_budgets_nothing_is_given_up():
    layers = network()
    assert set(allocate(layers, omegas(layers)).choices.values()) == {W8A8}


def test_the_least_sensitive_are_narrowed_first():
    layers = network()
    found = allocate(layers, omegas(layers), latency=times(layers), latency_budget="0.75x")
    assert [str(c) for c in found.choices.values()] == ["w4a4", "w4a4", "w8a8", "w8a8"]
    assert found.totals["latency"] == pytest.approx(3.0)
    assert found.reasons["l0"].startswith("saves 500us, adds 2.99")
    assert found.reasons["l2"] == "sensitive: w4a8 would add 3.99"
    assert found.reasons["l3"] == "most sensitive: w4a8 would add 7.99"


def test_ends_and_pins_and_missing_kernels():
    layers = [
        layer("first", position="first"),
        layer("depthwise", op="depthwise_conv2d", groupable=False),
        layer("mine"),
        layer("free"),
        layer("last", position="last"),
    ]
    omega = {item.id: {"w8a8": 0.0, "w4a8": 1.0, "w4a8g32": 0.5} for item in layers}
    choices = [G32]
    found = allocate(layers, omega, size="0.85x", pinned={"mine": W4A8}, choices=choices)
    assert {n: str(c) for n, c in found.choices.items()} == {
        "first": "w8a8", "depthwise": "w8a8", "mine": "w4a8", "free": "w4a8g32", "last": "w8a8",
    }  # fmt: skip
    assert found.reasons["first"] == "first layer"
    assert found.reasons["depthwise"] == "no other kernel for depthwise_conv2d"
    assert found.reasons["mine"] == "pinned"
    free = allocate(layers, omega, size="0.75x", pin_ends=False, choices=choices)
    assert free.choices["first"] == G32


def test_ties():
    layers = [layer("a", group="g"), layer("b", group="g"), layer("c")]
    omega = omegas(layers)
    omega["b"]["w4a4"] = 1e6
    found = allocate(layers, omega, latency=times(layers), latency_budget="0.95x")
    assert found.choices["a"].activation.bits == found.choices["b"].activation.bits == 8
    blocked = [layer("a", group="g"), layer("d", group="g", given=UINT8)]
    slow = {"a": {"w8a8": 1.0, "w4a4": 0.5}, "d": {"w8a8": 1.0}}
    found = allocate(blocked, omegas(blocked), latency=slow, latency_budget="1x", choices=[W4A4])
    assert found.reasons["a"] == (
        "tied to d, which needs 8-bit activations (no other kernel for conv2d)"
    )


def test_what_buys_nothing_is_said():
    layers = network(2)
    same = {"l0": {"w8a8": 1.0, "w4a8": 0.999, "w4a4": 1.01},
            "l1": {"w8a8": 1.0, "w4a8": 0.5, "w4a4": 0.4}}  # fmt: skip
    found = allocate(layers, omegas(layers), latency=same, latency_budget="0.9x")
    assert found.reasons["l0"] == "narrower buys nothing here: w4a8 takes 999us, w8a8 1ms"


def test_of_equal_plans_the_faster_is_taken():
    layers = network(1)
    omega = {"l0": {"w8a8": 1.0, "w4a8": 1.0, "w4a4": 1.0}}
    assert allocate(layers, omega, latency=times(layers)).choices["l0"] == W4A4


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"latency_budget": "0.4x"}, r"latency cannot be 1.6ms: the least is 2ms \(0.5x of w8a8"),
        ({"size": "10B"}, r"size cannot be 10B: the least is"),
        (
            {"latency_budget": "0.4x", "bops": "0.1x"},
            r"latency cannot be .*; bops cannot be .* the least is .*\(0.25x",
        ),
        ({"size": "lots"}, "size budget 'lots' is not understood; expected a share"),
        ({"latency_budget": "-1ms"}, "latency budget '-1ms' is not understood"),
        ({"latency_budget": "3MB"}, "latency budget '3MB' is not understood"),
        ({"bops": "0x"}, "bops budget '0x' is not understood"),
    ],
)
def test_what_cannot_be_kept(budgets, message):
    layers = network()
    with pytest.raises(AllocationError, match=message):
        allocate(layers, omegas(layers), latency=times(layers), **budgets)


def test_budgets_that_exclude_each_other():
    layers = network(2)
    latency = {"l0": {"w8a8": 1.0, "w4a8": 3.0}, "l1": {"w8a8": 1.0, "w4a8": 3.0}}
    message = r"alone but not together: latency cannot be 2ms within size .*, or size cannot be"
    with pytest.raises(AllocationError, match=message):
        allocate(layers, omegas(layers), latency=latency, latency_budget="1x", size="0.9x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l1": {"w8a8": 0.1, "w4a8": 1.0}}, "'l1' has no sensitivity for w4a4"),
        ({"l1": {"w8a8": 0.1, "w4a8": math.nan, "w4a4": 1.0}}, "'l1': its sensitivity .* is nan"),
    ],
)
def test_sensitivity_of_every_choice_is_needed(change, message):
    layers = network()
    with pytest.raises(AllocationError, match=message):
        allocate(layers, omegas(layers) | change)


def test_other_mistakes_are_named():
    layers = network()
    with pytest.raises(AllocationError, match="'conv' is none of the model's"):
        allocate(layers, omegas(layers), pinned={"conv": W4A8})
    with pytest.raises(AllocationError, match="needs measured latencies"):
        allocate(layers, omegas(layers), latency_budget="0.9x")
    with pytest.raises(AllocationError, match="no measured latency with w8a8"):
        allocate(layers, omegas(layers), latency={}, latency_budget="0.9x")
    with pytest.raises(AllocationError, match="no layer whose bit widths"):
        allocate([], {})
    one = [layer("a", group="g"), layer("b", group="g")]
    with pytest.raises(AllocationError, match=r"different widths of it: 'a' .pinned to w4a4., 'b'"):
        allocate(one, omegas(one), pinned={"a": W4A4, "b": W8A8}, size="0.9x")
    only = [layer("d", op="depthwise", groupable=False)]
    with pytest.raises(AllocationError, match=r"'d' \(depthwise\) is pinned to w4a8g32"):
        allocate(only, omegas(only), pinned={"d": G32})


def test_the_frontier_descends():
    layers = network(6)
    plans = pareto(layers, omegas(layers), latency=times(layers), points=8)
    latencies = [plan.totals["latency"] for plan in plans]
    assert latencies == sorted(latencies)
    assert all(b.perturbation < a.perturbation for a, b in itertools.pairwise(plans))
    assert plans[0].totals["latency"] == pytest.approx(3.0)
    assert set(plans[-1].choices.values()) == {W8A8}
    with pytest.raises(AllocationError, match="a frontier of 1 points"):
        pareto(layers, omegas(layers), points=1)
