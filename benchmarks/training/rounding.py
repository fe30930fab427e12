"""Weights of few bits that are rounded anew, on a hundred images without labels."""

from __future__ import annotations

import functools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tvmquant
from benchmarks.accuracy import TASKS, check_files, open_images
from benchmarks.rows import Row, target_rounding
from benchmarks.training.common import Setting, kept
from tvmquant.bit_choice import BitChoice
from tvmquant.calibration import Calibration
from tvmquant.data import Dataset
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.training import Recipe

MODEL: Final = "squeezenet"
# Of all layers but the ends.
CHOICES: Final = ("w4a8", "w3a8")
NEAREST: Final = "nearest"
RECIPES: Final = ("adaround", "brecq", "qdrop")


@dataclass(frozen=True)
class Subject:
    """A calibrated network, and its images.

    Parameters
    ----------
    graph : Graph
        Level L0.
    images : Dataset
        Those that calibrated.
    calibration : Calibration
    held_out : Dataset
        The others.
    options : dict
        Of `tvmquant.quantize`.
    """

    graph: Graph
    images: Dataset
    calibration: Calibration
    held_out: Dataset
    options: dict[str, bool]


def rows(setting: Setting) -> list[Row]:
    """Round by every recipe and at every choice, build and evaluate.

    Returns
    -------
    list of Row
        Of each choice and recipe, and of rounding to the nearest: ``top1`` of the library on the
        images that did not calibrate, ``minutes`` of rounding on the clock and ``cpu_minutes``.
    """
    task = TASKS[MODEL]
    check_files(setting.folder, task)
    graph = tvmquant.load_onnx(setting.folder / "models" / task.model)
    images = open_images(setting.folder, task, task.calibration, 16)
    subject = Subject(
        graph, images, tvmquant.calibrate(graph, images),
        open_images(setting.folder, task, task.evaluation, 10), target_rounding(setting.target),
    )  # fmt: skip
    found: list[Row] = []
    for choice in CHOICES:
        for method in (NEAREST, *RECIPES):
            recipe = None if method == NEAREST else Recipe.read(method, setting.changes)
            config = f"{choice}-{method}"
            path = setting.out / "rounding" / config / "figures.json"
            identity = recipe and recipe.model_dump(mode="json")
            find = functools.partial(_figures, setting, subject, choice, recipe, path.parent)
            for metric, value in kept(path, identity, find).items():
                unit = "%" if metric == "top1" else "min"
                found.append(setting.make(MODEL, config, metric, value, unit, images=len(images)))
    return found


def _figures(
    setting: Setting, subject: Subject, choice: str, recipe: Recipe | None, folder: Path
) -> dict[str, float]:
    how: dict[str, Any] = {
        "choices": uniform_choices(quantizable_layers(subject.graph), BitChoice.parse(choice)),
        **subject.options,
    }
    figures = {}
    if recipe is not None:
        start, cpu = time.perf_counter(), time.process_time()
        with setting.stage(folder.name) as progress:
            how["reconstruction"] = tvmquant.reconstruct(
                subject.graph, subject.images, subject.calibration, out=folder, recipe=recipe,
                progress=progress, **how,
            )  # fmt: skip
        figures["minutes"] = (time.perf_counter() - start) / 60.0
        figures["cpu_minutes"] = (time.process_time() - cpu) / 60.0
    quantized = tvmquant.quantize(subject.graph, subject.calibration, **how)
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        out = Path(scratch, "library")
        with setting.stage("build"):
            tvmquant.build(quantized, target=setting.target, out=out, threads=setting.threads)
        with setting.stage("evaluate") as progress:
            library = tvmquant.load(out)
            accuracy = tvmquant.evaluate(library, subject.held_out, progress=progress)
    assert accuracy.top1 is not None
    return {"top1": accuracy.top1, **figures}
