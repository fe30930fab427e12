"""One set of weights for 8, 6, 4 and 2 bits (CoQuant), and the methods it is compared with.

Delta_B of a method is the mean over widths of its accuracy, relative to that of networks that were
trained for each width alone (``individual``), in percent.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

import tvmquant
from benchmarks.rows import Row
from benchmarks.training.common import BATCH, MODEL, Setting, kept, logits, top1
from tvmquant.bit_choice import BitChoice
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.passes import pipeline
from tvmquant.training import Recipe
from tvmquant.training.items import Items
from tvmquant.twin import Twin

WIDTHS: Final = (8, 6, 4, 2)
IMAGES: Final = 10_000
# Images of which every logit of the library is compared with the exact twin's.
COMPARED: Final = 1_000
REFERENCE: Final = "individual"
COMMON: Final[Mapping[str, Any]] = {
    "epochs": 1, "batch_size": 64, "residual_bits": 8,
    "augmentation": {"shift": 2, "mirror": True},
}  # fmt: skip
CALIBRATES: Final[Mapping[str, Any]] = {"adaptive.norms": "weight", "adaptive.reestimate": 50}
EIGHT: Final[Mapping[str, Any]] = {"adaptive.passes": "widest"}
SGD: Final[Mapping[str, Any]] = {"optimizer.lr": 0.01, "optimizer.step_lr": 0.01}
# Of one pass a step, where gradients of four do not add up.
ALONE: Final[tuple[str, Mapping[str, Any]]] = ("lsq", {**SGD, "optimizer.lr": 0.02})
# Recipes, and what is changed in them; Bit-Mixer has an epoch for each of its phases.
METHODS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = MappingProxyType(
    {
        "coquant": ("coquant", SGD),
        "switchable": ("switchable", SGD),
        "joint": ("joint", SGD),
        "dq-32": ("dq", SGD),
        "dq-32-calibrated": ("dq", SGD | CALIBRATES),
        "dq-8": ("dq", SGD | EIGHT),
        "dq-8-calibrated": ("dq", SGD | EIGHT | CALIBRATES),
        "bit-mixer": ("bit-mixer", SGD | {"epochs": 2}),
        "any-precision": ("any-precision", {}),
        "adabits": ("adabits", SGD),
    }
)


def rows(setting: Setting) -> list[Row]:
    """Train by every method, build one library of all widths, and evaluate.

    Returns
    -------
    list of Row
        Of each method and width the ``top1`` of the library on all test images, and what is
        ``differing`` from the exact twin in `COMPARED` of them; of each method ``delta_b``,
        ``cpu_minutes``, the bytes of the ``library``, and ``most_distance`` (lambda) of CoQuant.
    """
    found: list[Row] = []
    reference: dict[str, float] = {}
    for method in (REFERENCE, *METHODS):
        name, changes = METHODS.get(method, ALONE)
        recipe = Recipe.read(name, {**COMMON, **changes, **setting.changes})
        document = recipe.model_dump(mode="json")
        path = setting.out / "adaptive" / method / "figures.json"
        figures = kept(path, document, functools.partial(_figures, setting, method, recipe))
        tops = {f"w{width}": figures[f"w{width}"] for width in WIDTHS}
        reference = reference or tops
        delta = 100.0 * statistics.fmean(tops[width] / reference[width] for width in tops)
        facts = _facts(document)
        for width, value in tops.items():
            found.append(setting.make(MODEL, f"{method}-{width}", "top1", value, "%", **facts))
        found.append(setting.make(MODEL, method, "delta_b", delta, "%", **facts))
        for name, unit in (("differing", ""), ("cpu_minutes", "min"), ("library", "B")):
            found.append(setting.make(MODEL, method, name, figures[name], unit))
        if "most_distance" in figures:
            found.append(setting.make(MODEL, method, "most_distance", figures["most_distance"], ""))
    return found


def _figures(setting: Setting, method: str, recipe: Recipe) -> dict[str, float]:
    """Train and evaluate a method."""
    folder = setting.out / "adaptive" / method
    if method == REFERENCE:
        graphs, history = _individual(setting, recipe, folder)
    else:
        trained = tvmquant.train(
            setting.graph, setting.training_images(IMAGES), recipe, out=folder,
            stage=setting.stage,
        )  # fmt: skip
        graphs, history = trained.widths, trained.history
    return {
        "cpu_minutes": sum(epoch["cpu_minutes"] for epoch in history),
        **{key: history[-1][key] for key in ("most_distance",) if key in history[-1]},
        **_deployed(setting, graphs, together=method != REFERENCE),
    }


def _facts(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what rows say of a recipe; the whole lies beside the checkpoint."""
    optimizer, adaptive = recipe["optimizer"], recipe["adaptive"] or {}
    found = {name: recipe[name] for name in ("epochs", "batch_size", "residual_bits", "seed")}
    found |= {name: optimizer[name] for name in ("lr", "step_lr")}
    swapped = {"swap": adaptive["swap"]} if adaptive.get("swap") is not None else {}
    return {"images": IMAGES, **found, **swapped}


def _individual(
    setting: Setting, recipe: Recipe, folder: Path
) -> tuple[dict[int, Graph], list[dict[str, float]]]:
    """Train a network for each width alone."""
    layers = quantizable_layers(setting.graph)
    graphs, history = {}, []
    for width in WIDTHS:
        choices = uniform_choices(layers, BitChoice.parse(f"w{width}a{width}"))
        trained = tvmquant.train(
            setting.graph, setting.training_images(IMAGES), recipe, out=folder / f"w{width}",
            choices=choices, stage=setting.stage,
        )  # fmt: skip
        graphs[width] = trained.graph
        history += trained.history
    return graphs, history


def _deployed(setting: Setting, graphs: dict[int, Graph], *, together: bool) -> dict[str, float]:
    """Build one library of all widths, or one of each, and evaluate."""
    integers = {
        width: graph.with_module(pipeline.integerize(graph.module), "L2")
        for width, graph in graphs.items()
    }
    test = setting.test
    few = Items(test.inputs[:COMPARED], None)
    found: dict[str, float] = {"differing": 0.0, "library": 0.0}
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        folders = {width: Path(scratch, f"w{width}") for width in graphs}
        if together:
            folders = dict.fromkeys(graphs, Path(scratch, "all"))
        for width, out in folders.items():
            if not out.exists():
                with setting.stage("build"):
                    manifest = tvmquant.build(
                        integers if together else integers[width], target=setting.target, out=out,
                        threads=setting.threads, batch=BATCH,
                    )  # fmt: skip
                found["library"] += manifest.library["bytes"]
            library = tvmquant.load(out, width=width if together else None)
            with setting.stage("evaluate"):
                outputs = np.concatenate([library(x.numpy()) for x in test.batches(BATCH)])
                exact = logits(Twin(graphs[width].module, mode="exact"), few)
            found[f"w{width}"] = top1(outputs, test)
            found["differing"] += int(np.count_nonzero(outputs[:COMPARED] != exact))
    return found
