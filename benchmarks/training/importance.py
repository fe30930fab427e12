"""Plans by importance that is learned (LIMPQ) and by other sensitivities, at equal costs.

Layers but the ends take any of 2, 3, 4, 6 and 8 bits, weights and activations apart. Three budgets:
the bit operations of uniform w3a3 (``bops``); its measured latency (``latency``); and both, the bit
operations of uniform w4a4 and the latency half-way from w8a8 to it (``both``). Each plan is trained
alike, once for each seed, of which a random plan follows too; equal plans are trained once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import tvmquant
from benchmarks.rows import Row, target_rounding
from benchmarks.training.common import MODEL, Setting, kept, trained_rows
from tvmquant.allocation import allocate
from tvmquant.allocation.costs import Costs
from tvmquant.bit_choice import W4A4, W8A8, BitChoice
from tvmquant.layers import Layer, quantizable_layers, uniform_choices
from tvmquant.network_latency import NetworkLatency, measure_network
from tvmquant.sensitivity import Sensitivity
from tvmquant.training import Recipe

Plan = dict[str, BitChoice]

WIDTHS: Final = (8, 6, 4, 3, 2)
CHOICES: Final = tuple(BitChoice.parse(f"w{w}a{a}") for w in WIDTHS for a in WIDTHS)
W3A3: Final = BitChoice.parse("w3a3")
METHODS: Final = ("limpq", "hessian", "fisher", "output", "random", "uniform")
SENSITIVITY_IMAGES: Final = 64
LEARNING: Final[Mapping[str, Any]] = {"epochs": 2}
TRAINING: Final[Mapping[str, Any]] = {"epochs": 1}
IMAGES: Final = 10_000
SEEDS: Final = 3
# Of sums that a budget was made of.
ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Budget:
    """What a plan may take.

    Parameters
    ----------
    bops : float, optional
    milliseconds : float, optional
    """

    bops: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Subject:
    """A network, and what its plans follow from.

    Parameters
    ----------
    layers : tuple of Layer
    latency : NetworkLatency
    sensitivities : dict of str to Sensitivity
        By method, of ``random`` for each seed: ``random-0``.
    """

    layers: tuple[Layer, ...]
    latency: NetworkLatency
    sensitivities: dict[str, Sensitivity]

    @property
    def costs(self) -> Costs:
        """What choices take."""
        return Costs(self.latency.layers, self.latency.fixed_ms)

    def total(self, quantity: str, plan: Plan) -> float:
        """Return what a plan takes."""
        return self.costs.total(quantity, self.layers, plan)

    @property
    def budgets(self) -> dict[str, Budget]:
        """The budgets by name."""
        w8a8, w4a4, w3a3 = (uniform_choices(self.layers, c) for c in (W8A8, W4A4, W3A3))
        middle = (self.total("latency", w8a8) + self.total("latency", w4a4)) / 2.0
        return {
            "bops": Budget(bops=self.total("bops", w3a3)),
            "latency": Budget(milliseconds=self.total("latency", w3a3)),
            "both": Budget(self.total("bops", w4a4), middle),
        }

    def plan(self, method: str, budget: Budget) -> Plan:
        """Return a method's plan; the uniform one is that of most bit operations."""
        if method == "uniform":
            plans = [uniform_choices(self.layers, choice) for choice in CHOICES]
            able = [plan for plan in plans if self.keeps(plan, budget)]
            return max(able, key=lambda plan: self.total("bops", plan))
        known = self.sensitivities[method]
        return allocate(
            self.layers, known.perturbation, latency=self.latency.layers,
            fixed_latency_ms=self.latency.fixed_ms, choices=CHOICES, excluded=known.excluded,
            bops=None if budget.bops is None else f"{budget.bops:.0f}",
            latency_budget=None if budget.milliseconds is None else f"{budget.milliseconds!r}ms",
        ).choices  # fmt: skip

    def keeps(self, plan: Plan, budget: Budget) -> bool:
        """Whether a plan takes no more than a budget."""
        limits = {"bops": budget.bops, "latency": budget.milliseconds}
        return all(
            limit is None or self.total(quantity, plan) <= limit * (1.0 + ROUNDING)
            for quantity, limit in limits.items()
        )


def rows(setting: Setting) -> list[Row]:
    """Learn importance, plan at every budget, train, build and evaluate.

    Returns
    -------
    list of Row
        ``cpu_minutes`` of learning importance; of each budget, method and seed the ``top1`` of the
        library and what is ``differing`` in it from the exact twin, with ``bops``, predicted
        ``latency_ms``, milliseconds of the program (``search_ms``) and the plan; of each budget and
        method the mean over seeds, with the ``spread`` (standard deviation).
    """
    graph = setting.graph
    learned, minutes = _learned(setting)
    found = [
        setting.make(MODEL, "limpq", "cpu_minutes", minutes, "min", images=learned.count,
                     excluded=sum(map(len, learned.excluded.values())))
    ]  # fmt: skip
    subject = Subject(quantizable_layers(graph), _latency(setting), _estimates(setting))
    subject.sensitivities["limpq"] = learned
    tops: dict[tuple[str, str], list[float]] = {}
    wanted = itertools.product(subject.budgets.items(), range(SEEDS), METHODS)
    for (name, budget), seed, method in wanted:
        start = time.perf_counter()
        plan = subject.plan(f"random-{seed}" if method == "random" else method, budget)
        facts = {
            "search_ms": 1e3 * (time.perf_counter() - start),
            "bops": subject.total("bops", plan),
            "latency_ms": subject.total("latency", plan),
            "plan": " ".join(map(str, plan.values())),
            "seed": seed,
        }
        figures = _figures(setting, plan, seed)
        tops.setdefault((name, method), []).append(figures["top1"])
        for metric, value in figures.items():
            unit = {"top1": "%", "cpu_minutes": "min"}.get(metric, "")
            found.append(setting.make(MODEL, f"{name}-{method}", metric, value, unit, **facts))
    for (name, method), values in tops.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.fmean(values)
        found.append(
            setting.make(MODEL, f"{name}-{method}", "top1_mean", mean, "%", spread=spread,
                         seeds=len(values))
        )  # fmt: skip
    return found


def _learned(setting: Setting) -> tuple[Sensitivity, float]:
    recipe = Recipe.read("limpq", {**LEARNING, **setting.changes})
    trained = tvmquant.train(
        setting.graph, setting.training_images(IMAGES), recipe, out=setting.out / "limpq",
        stage=setting.stage,
    )  # fmt: skip
    assert trained.sensitivity is not None
    return trained.sensitivity, sum(epoch["cpu_minutes"] for epoch in trained.history)


def _estimates(setting: Setting) -> dict[str, Sensitivity]:
    """Estimate, or read, what the other methods find."""
    images = setting.calibration_images()
    calibration = tvmquant.calibrate(setting.graph, images)
    few = images.subset(step=max(1, len(images) // SENSITIVITY_IMAGES), limit=SENSITIVITY_IMAGES)
    wanted = {method: (method, 0) for method in METHODS if method not in ("limpq", "uniform")}
    del wanted["random"]
    wanted |= {f"random-{seed}": ("random", seed) for seed in range(SEEDS)}
    found = {}
    for name, (method, seed) in wanted.items():
        with setting.stage(f"sensitivity: {name}") as progress:
            found[name] = tvmquant.estimate_sensitivity(
                setting.graph, few, calibration, method=method, choices=CHOICES, seed=seed,
                cache=setting.out / "sensitivity", progress=progress,
                **target_rounding(setting.target),
            )  # fmt: skip
    return found


def _latency(setting: Setting) -> NetworkLatency:
    """Measure, or read, what layers take at every choice."""
    path = setting.out / "latency.json"
    if not path.exists():
        calibration = tvmquant.calibrate(setting.graph, setting.calibration_images())
        with setting.stage("latency of layers") as progress:
            measured = measure_network(
                setting.graph, calibration, choices=CHOICES, target=setting.target,
                threads=setting.threads, quantize_options=target_rounding(setting.target),
                progress=progress,
            )  # fmt: skip
        measured.save(path)
    return NetworkLatency.load(path)


def _figures(setting: Setting, plan: Plan, seed: int) -> dict[str, float]:
    """Train a plan, or read what came of it."""
    recipe = Recipe.read("lsq", {**TRAINING, **setting.changes, "seed": seed})
    names = {layer: str(choice) for layer, choice in plan.items()}
    identity = json.dumps([names, recipe.model_dump(), IMAGES], sort_keys=True)
    name = f"plan-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def find() -> dict[str, float]:
        made, _ = trained_rows(setting, name, recipe, plan, setting.training_images(IMAGES))
        values = {(str(row["config"]).split("-")[0], row["metric"]): row["value"] for row in made}
        return {
            "top1": values["library", "top1"],
            "differing": values["library", "differing"],
            "cpu_minutes": values["trained", "cpu_minutes"],
        }

    return kept(setting.out / name / "figures.json", identity, find)
