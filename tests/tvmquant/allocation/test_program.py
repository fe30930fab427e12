import itertools
import math
from random import Random
from unittest import mock

import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tvmquant.allocation.test_allocate import layer
from tvmquant.allocation import program
from tvmquant.allocation.program import least, solve
from tvmquant.bit_choice import W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import AllocationError

CHOICES = (W8A8, BitChoice.parse("w8a4"), W4A8, W4A4)


def bits(choice):
    return choice.weight.bits + choice.activation.bits


def total(table, plan):
    return math.fsum(table[name][choice] for name, choice in plan.items())


def every_plan(layers, table, limits):
    """Yield the plans that keep the ties and limits."""
    names = [item.id for item in layers]
    for choices in itertools.product(*(table[name] for name in names)):
        plan = dict(zip(names, choices, strict=True))
        widths = {}
        tied = all(
            widths.setdefault(item.group, held) == held
            for item in layers
            for held in [plan[item.id].activation]
        )
        if tied and all(total(costs, plan) <= limit for costs, limit in limits):
            yield plan


@st.composite
def programs(draw, values):
    layers = [
        layer(f"l{i}", group=draw(st.sampled_from([None, "g", "h"])))
        for i in range(draw(st.integers(1, 5)))
    ]
    able = {
        item.id: draw(st.lists(st.sampled_from(CHOICES), min_size=1, max_size=3, unique=True))
        for item in layers
    }

    def table(numbers):
        return {name: {choice: draw(numbers) for choice in row} for name, row in able.items()}

    limits = []
    for _ in range(draw(st.integers(1, 3))):
        costs = table(st.integers(1, 100))
        most = sum(max(row.values()) for row in costs.values())
        limits.append((costs, float(draw(st.integers(most // 4, most)))))
    return layers, table(values), limits, [table(st.integers(1, 9)), table(st.integers(1, 9))]


@given(
    programs(st.floats(-30, 3).map(lambda exponent: 10.0**exponent)), st.sampled_from([0, 2, 160])
)
@settings(max_examples=150, deadline=None)
def test_perturbations_of_any_magnitude_are_minimised(case, core):
    layers, omega, limits, ties = case
    with mock.patch.object(program, "CORE", core), mock.patch.object(program, "GAP", 1e-6):
        found = solve(layers, omega, limits, ties)
    plans = list(every_plan(layers, omega, limits))
    if found is None:
        assert not plans
        return
    assert found in plans
    best = min(total(omega, plan) for plan in plans)
    floor = sum(min(row.values()) for row in omega.values())
    assert total(omega, found) - best <= 1e-5 * (best - floor) + 1e-15 * best


@given(programs(st.integers(0, 3)))
@settings(max_examples=100, deadline=None)
def test_ties_are_settled_in_order(case):
    layers, omega, limits, ties = case
    found = solve(layers, omega, limits, ties)
    plans = list(every_plan(layers, omega, limits))
    if found is None:
        assert not plans
        return
    ranks = [tuple(total(table, plan) for table in (omega, *ties)) for plan in plans]
    assert tuple(total(table, found) for table in (omega, *ties)) == min(ranks)


@given(programs(st.integers(0, 3)))
@settings(max_examples=100, deadline=None)
def test_the_least_of_a_quantity_can_be_asked_for(case):
    layers, omega, limits, _ = case
    if not any(every_plan(layers, omega, [])):
        with pytest.raises(AllocationError, match="no choice of one width"):
            least(layers, [omega])
        return
    costs = limits[0][0]
    low = total(costs, least(layers, [costs]))
    assert low == min(total(costs, plan) for plan in every_plan(layers, omega, []))
    found = solve(layers, omega, [(costs, low)])
    assert total(costs, found) == low
    assert solve(layers, omega, [(costs, low * (1 - 1e-6))]) is None


def network(seed):
    """Return a program with more choices than the core that the test below starts with."""
    random = Random(seed)
    layers = [
        layer(f"l{i}", group=f"g{i // 3}" if random.random() < 0.4 else None) for i in range(12)
    ]

    def table(value):
        return {item.id: {choice: value(choice) for choice in CHOICES} for item in layers}

    costs = [
        table(lambda c: random.randint(50, 150) * (c.weight.bits + c.activation.bits)),
        table(lambda c: random.randint(1, 1000) * c.weight.bits),
    ]
    limits = []
    for values in costs:
        lows = sum(min(row.values()) for row in values.values())
        highs = sum(max(row.values()) for row in values.values())
        limits.append((values, lows + random.uniform(0.15, 0.7) * (highs - lows)))
    omega = table(lambda c: 10.0 ** random.uniform(-9, 1) * (17 - bits(c)))
    return layers, omega, limits


@pytest.mark.parametrize("seed", range(30))
def test_the_core_gives_what_the_whole_program_gives(seed):
    layers, omega, limits = network(seed)
    with mock.patch.object(program, "CORE", 10**6):
        whole = solve(layers, omega, limits)
    with mock.patch.object(program, "CORE", 1):
        found = solve(layers, omega, limits)
    assert (found is None) == (whole is None)
    if found is not None:
        assert all(total(costs, found) <= limit * (1 + 1e-8) for costs, limit in limits)
        floor = sum(min(row.values()) for row in omega.values())
        tolerance = 2.0 * program.GAP * (total(omega, whole) - floor)
        assert total(omega, found) == pytest.approx(total(omega, whole), rel=0, abs=tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_two_hundred_layers_of_six_choices(seed, caplog):
    random = Random(seed)
    choices = (*CHOICES, BitChoice.parse("w4a8g32"), BitChoice.parse("w4a4g32"))
    layers = [
        layer(f"l{i}", group=f"g{i // 3}" if random.random() < 0.4 else None) for i in range(200)
    ]

    def table(value):
        return {item.id: {choice: value(choice) for choice in choices} for item in layers}

    omega = table(lambda c: 10.0 ** random.uniform(-6, 0) * (17 - bits(c)))
    limits = []
    for _ in range(3):
        costs = table(lambda c: random.uniform(0.5, 1.0) * (c.weight.bits + c.activation.bits))
        limits.append((costs, 0.8 * sum(row[W8A8] for row in costs.values())))
    # a proof of optimality, however long it takes
    with mock.patch.object(program, "TIME_LIMIT", 600.0):
        found = solve(layers, omega, limits)
    assert not caplog.records
    assert set(found) == {item.id for item in layers}
    assert next(every_plan(layers, {n: [c] for n, c in found.items()}, [])) == found  # ties hold
    assert all(total(costs, found) <= limit * (1 + 1e-8) for costs, limit in limits)
    # no plan that differs in one layer is better
    alone = [item for item in layers if item.group == item.id]
    for item, choice in itertools.product(alone, choices):
        other = found | {item.id: choice}
        kept = all(total(costs, other) <= limit for costs, limit in limits)
        assert not kept or total(omega, other) >= total(omega, found) * (1 - program.GAP)


def test_of_equal_choices_the_widest_is_taken():
    layers = [layer("a"), layer("b", group="g"), layer("c", group="g")]
    omega = {item.id: dict.fromkeys(CHOICES[::-1], 1.0) for item in layers}
    assert set(solve(layers, omega).values()) == {W8A8}
    assert set(solve(layers, omega, [(omega, 3.0)], [omega]).values()) == {W8A8}


def test_a_core_that_cannot_keep_a_limit_is_widened():
    # the dearest choice of every layer is needed, but the cheap ones are nearer to the bound
    layers = [layer(f"l{i}") for i in range(12)]
    omega = {item.id: {W8A8: 0.0, W4A8: 1.0 + i, W4A4: 100.0} for i, item in enumerate(layers)}
    costs = {item.id: {W8A8: 10.0, W4A8: 9.0, W4A4: 1.0} for item in layers}
    with mock.patch.object(program, "CORE", 0):
        found = solve(layers, omega, [(costs, 12.0)])
        assert set(found.values()) == {W4A4}
        assert solve(layers, omega, [(costs, 11.9)]) is None


@pytest.fixture
def small():
    layers = [layer("a"), layer("b")]
    omega = {item.id: {W8A8: 0.0, W4A8: 1.0} for item in layers}
    costs = {item.id: {W8A8: 2.0, W4A8: 1.0} for item in layers}
    return layers, omega, [(costs, 3.0)]


def test_a_plan_that_is_not_proved_is_said_to_be(small, caplog):
    plan = {"a": W4A8, "b": W8A8}
    with mock.patch.object(program, "_optimum", return_value=(plan, False)):
        assert solve(*small) == plan
    assert "the plan may not be the best: no proof within 5 s" in caplog.text


def test_a_solver_that_gives_up_is_no_proof_that_there_is_no_plan(small):
    gives_up = mock.patch.object(pulp.LpProblem, "solve", return_value=pulp.LpStatusNotSolved)
    with gives_up, pytest.raises(AllocationError, match=r"no plan was found within 5 s .Not Sol"):
        solve(*small)
