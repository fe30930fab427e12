"""Plans that are compared keep the same budgets."""

from pathlib import Path

import pytest

import tvmquant
from benchmarks.training.importance import CHOICES, METHODS, Subject
from tvmquant.layers import Layer, quantizable_layers
from tvmquant.network_latency import NetworkLatency
from tvmquant.sensitivity import Sensitivity


def _sensitivity(layers: tuple[Layer, ...], method: str) -> Sensitivity:
    omega = {
        layer.id: {str(c): index * (4.0**-c.weight.bits + 4.0**-c.activation.bits) for c in CHOICES}
        for index, layer in enumerate(layers, 1)
    }
    return Sensitivity(
        method=method, model="m", data=None, count=1, labelled=True, losses=[], probes=0,
        tolerance=1.0, relative_error=None, converged=True, layers={}, perturbation=omega,
    )  # fmt: skip


@pytest.fixture(scope="module")
def subject(shared_dir: Path) -> Subject:
    layers = quantizable_layers(tvmquant.load_onnx(shared_dir / "models/resnet20-cifar10.onnx"))
    # as where weights of few bits are unpacked and nothing else is gained
    times = {
        layer.id: {str(c): 1.05 if c.weight.bits <= 4 else 1.0 for c in CHOICES} for layer in layers
    }
    latency = NetworkLatency(
        model="m", target="t", threads=1, layers=times, fixed_ms=0.5, networks_ms={}
    )
    return Subject(layers, latency, {m: _sensitivity(layers, m) for m in METHODS[:-1]})


@pytest.mark.parametrize("name", ["bops", "latency", "both"])
@pytest.mark.parametrize("method", ["limpq", "uniform"])
def test_plans_keep_their_budget(subject: Subject, name: str, method: str) -> None:
    budget = subject.budgets[name]
    assert subject.keeps(subject.plan(method, budget), budget)


def test_of_widths_that_cost_the_same_the_widest_is_taken(subject: Subject) -> None:
    for method in ("limpq", "uniform"):
        plan = subject.plan(method, subject.budgets["latency"])
        assert {str(choice) for choice in plan.values()} == {"w8a8"}


def test_the_uniform_plan_is_that_of_most_operations(subject: Subject) -> None:
    inner = [layer.id for layer in subject.layers if not layer.position]
    plan = subject.plan("uniform", subject.budgets["bops"])
    assert {str(plan[name]) for name in inner} == {"w3a3"}
    plan = subject.plan("uniform", subject.budgets["both"])
    assert {str(plan[name]) for name in inner} == {"w8a2"}
