"""Gradients of rounding compared, at 3 bits and over several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from benchmarks.rows import Row
from benchmarks.training.common import MODEL, Setting, deployed
from tvmquant import train
from tvmquant.bit_choice import BitChoice
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.training import Recipe

CHOICE: Final = "w3a3"
IMAGES: Final = 10_000
SEEDS: Final = (0, 1, 2)
CHANGES: Final[Mapping[str, Any]] = MappingProxyType(
    {"epochs": 2, "residual_bits": 8, "optimizer.lr": 0.02}
)
# Of weights and activations: what public code of these methods has, in the unit of
# `tvmquant.training.rounding`.
DELTAS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "ste": 0.0, "pbgs": 5e-3, "ewgs": 5e-3, "acos": 2.5e-3, "tanh": 2.5e-3, "invtanh": 1.4e-3,
    }
)  # fmt: skip
# By so many standard errors the best has to lead to be named.
LEAD: Final = 2.0


def rows(setting: Setting) -> list[Row]:
    """Train with each shape and seed.

    Returns
    -------
    list of Row
        ``top1`` of every library; of each shape the mean over the seeds and its standard error;
        ``lead`` of the best mean over the next one, whose ``best`` names a shape only if it leads
        by `LEAD` standard errors of the difference.
    """
    choices = uniform_choices(quantizable_layers(setting.graph), BitChoice.parse(CHOICE))
    images = setting.training_images(IMAGES)
    found: list[Row] = []
    accuracies: dict[str, list[float]] = {}
    for shape, delta in DELTAS.items():
        for seed in SEEDS:
            rounding = {"shape": shape, "delta": delta}
            changes = {"weights.rounding": rounding, "activations.rounding": rounding}
            recipe = Recipe.read("lsq", {**CHANGES, **changes, "seed": seed, **setting.changes})
            name = f"{shape}-{seed}"
            trained = train(
                setting.graph, images, recipe, out=setting.out / "shapes" / name, choices=choices,
                stage=setting.stage,
            )  # fmt: skip
            make = setting.make
            taken = sum(epoch["cpu_minutes"] for epoch in trained.history)
            facts = {"images": len(images), "epochs": recipe.epochs, "delta": delta, "seed": seed}
            found.append(make(MODEL, f"trained-{name}", "cpu_minutes", taken, "min", **facts))
            new = list(
                deployed(make, MODEL, f"-{name}", trained.graph, setting.test, setting.stage)
            )
            found += new
            top1 = next(r["value"] for r in new if r["config"] == f"library-{name}")
            accuracies.setdefault(shape, []).append(float(top1 or 0.0))
    return [*found, *summary(setting, accuracies)]


def summary(setting: Setting, accuracies: Mapping[str, list[float]]) -> list[Row]:
    """Return the rows of each shape's accuracies, and of the best."""
    rows: list[Row] = []
    means, errors = {}, {}
    for shape, values in accuracies.items():
        means[shape] = statistics.fmean(values)
        errors[shape] = statistics.stdev(values) / len(values) ** 0.5
        config, facts = f"shape-{shape}", {"seeds": len(values)}
        rows.append(setting.make(MODEL, config, "top1_mean", means[shape], "%", **facts))
        rows.append(setting.make(MODEL, config, "standard_error", errors[shape], "%", **facts))
    first, second = sorted(means, key=lambda shape: -means[shape])[:2]
    lead = means[first] - means[second]
    certain = lead > LEAD * (errors[first] ** 2 + errors[second] ** 2) ** 0.5
    best = first if certain else ""
    return [*rows, setting.make(MODEL, "shapes", "lead", lead, "%", best=best)]
