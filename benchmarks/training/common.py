"""Accuracy of networks that were trained at their bit widths: that of their libraries."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import tvmquant
from benchmarks.accuracy import TASKS, Task, check_files, open_images
from benchmarks.rows import Row, RowMaker, machine_facts
from tvmquant.atomic_write import atomic_write
from tvmquant.bit_choice import BitChoice
from tvmquant.data import Dataset
from tvmquant.graph import Graph
from tvmquant.progress import Stage
from tvmquant.training import Recipe, Trained
from tvmquant.training.items import Items, read

MODEL = "resnet20"
TRAINING = ("cifar10-train.tar", None)
BATCH = 50


@dataclass(frozen=True)
class Setting:
    """Where and how trainings run.

    Parameters
    ----------
    folder : Path
        Holds ``models/`` and ``data/``.
    stage : Stage
    out : Path
        Folder of the checkpoints, from which a training goes on.
    changes : dict of str
        Of the recipes, as of `tvmquant.Recipe.read`.
    target : str
        As of `tvmquant.build`.
    threads : int
        Of trainings and libraries.
    """

    folder: Path
    stage: Stage
    out: Path
    changes: dict[str, Any]
    target: str = "native"
    threads: int = 1

    @property
    def make(self) -> RowMaker:
        """What makes rows of this machine."""
        return RowMaker("training", self.threads, machine_facts(self.target))

    @property
    def task(self) -> Task:
        """ResNet-20 on CIFAR-10."""
        return TASKS[MODEL]

    @functools.cached_property
    def graph(self) -> Graph:
        """The float network."""
        check_files(self.folder, self.task)
        return tvmquant.load_onnx(self.folder / "models" / self.task.model)

    @functools.cached_property
    def test(self) -> Items:
        """All test images."""
        return read_images(self.folder, self.task, self.task.evaluation)

    def training_images(self, count: int | None = None) -> Dataset:
        """Return the training images, or so many that are evenly apart."""
        data = open_images(self.folder, self.task, TRAINING, 500)
        if count is None:
            return data
        return data.subset(step=max(1, len(data) // count), limit=count)

    def calibration_images(self) -> Dataset:
        """Return the images that the network is calibrated with."""
        return open_images(self.folder, self.task, self.task.calibration, 16)


def trained_rows(
    setting: Setting,
    name: str,
    recipe: Recipe,
    choices: Mapping[str, BitChoice],
    images: Dataset | None = None,
) -> tuple[list[Row], Trained]:
    """Train, build and evaluate.

    Parameters
    ----------
    setting : Setting
    name : str
        Of the folder, and in the rows' configs.
    recipe : Recipe
    choices : mapping of str to BitChoice
    images : Dataset, optional
        Default: all training images.

    Returns
    -------
    list of Row
        ``minutes`` of training on the clock and ``cpu_minutes`` of all threads; ``top1`` of the
        exact twin and of the library; ``differing``: the library's outputs that are not the
        twin's, bit for bit.
    Trained
    """
    data = setting.training_images() if images is None else images
    trained = tvmquant.train(
        setting.graph, data, recipe, out=setting.out / name, choices=choices, stage=setting.stage
    )
    facts = {"epochs": recipe.epochs, "images": len(data), "seed": recipe.seed}
    rows = [
        setting.make(
            MODEL, f"trained-{name}", what, sum(epoch[what] for epoch in trained.history), "min",
            **facts,
        )
        for what in ("minutes", "cpu_minutes")
    ]  # fmt: skip
    rows += deployed(setting.make, MODEL, f"-{name}", trained.graph, setting.test, setting.stage)
    return rows, trained


def kept(path: Path, identity: Any, find: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return figures that were written for the same identity, or find and write them.

    Parameters
    ----------
    path : Path
        Of the JSON file; another identity's is replaced.
    identity : JSON value
        What the figures follow from.
    find : callable
    """
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["identity"] == identity:
            return dict(known["figures"])
    figures = find()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write_text(json.dumps({"identity": identity, "figures": figures}, indent=1), "utf-8")
    return figures


def read_images(folder: Path, task: Task, which: tuple[str, str | None]) -> Items:
    """Read and preprocess images of a task."""
    return read(open_images(folder, task, which, 500))


def deployed(
    make: RowMaker, model: str, suffix: str, annotated: Any, test: Items, stage: Stage
) -> Iterator[Row]:
    """Build an annotated graph (L1), and compare its library with its exact twin.

    Parameters
    ----------
    make : RowMaker
    model, suffix : str
        Of the rows: what follows ``twin`` and ``library`` in their configs.
    annotated : Graph
        Calibrated, or trained.
    test : Items
    stage : callable
    """
    from tvmquant.passes import pipeline
    from tvmquant.twin import Twin

    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        out = Path(scratch, "library")
        with stage("build"):
            integer = annotated.with_module(pipeline.integerize(annotated.module), "L2")
            tvmquant.build(
                integer, target=str(make.facts["target"]), out=out, threads=make.threads,
                batch=BATCH,
            )  # fmt: skip
        with stage("compare"):
            exact = logits(Twin(annotated.module, mode="exact"), test)
            library = tvmquant.load(out)
            found = np.concatenate([library(x.numpy()) for x in test.batches(BATCH)])
    yield make(model, f"twin{suffix}", "top1", top1(exact, test), "%")
    yield make(model, f"library{suffix}", "top1", top1(found, test), "%")
    differing = int(np.count_nonzero(found != exact))
    yield make(model, f"library{suffix}", "differing", differing, "", numbers=exact.size)


def logits(network: nn.Module, images: Items) -> npt.NDArray[np.float32]:
    """Return a network's outputs (N, classes)."""
    with torch.inference_mode():
        parts = [network(inputs).numpy() for inputs in images.batches(BATCH)]
    return np.concatenate(parts)


def top1(found: npt.NDArray[np.float32], images: Items) -> float:
    """Return the share of images, in percent, whose label has the greatest output."""
    assert images.labels is not None
    return 100 * float(np.mean(found.argmax(1) == images.labels.numpy()))
