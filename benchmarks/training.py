"""Accuracy of networks that were trained at their bit widths: that of their libraries."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.accuracy import TASKS, Task, check_files, open_images
from benchmarks.rows import Row, RowMaker, machine_facts
from tvmquant.bit_choice import BitChoice
from tvmquant.progress import Stage
from tvmquant.training.items import Items, read

MODEL = "resnet20"
TRAINING = ("cifar10-train.tar", None)
BATCH = 50


def run(
    folder: Path,
    *,
    stage: Stage,
    recipe: str,
    changes: dict[str, Any],
    choices: Sequence[str],
    out: Path,
    target: str = "native",
    threads: int,
) -> list[Row]:
    """Train ResNet-20 on CIFAR-10 for each choice, build it, and evaluate all test images.

    Parameters
    ----------
    folder : Path
        Holds ``models/`` and ``data/``.
    stage : callable
        As of `tvmquant.progress.Stage`.
    recipe, changes
        As of `tvmquant.Recipe.read`.
    choices : sequence of str
        Each for a training of its own, of all layers but the ends.
    out : Path
        Folder of the checkpoints, from which a training goes on.
    target : str
        As of `tvmquant.build`.
    threads : int
        Of the training and of the library.

    Returns
    -------
    list of Row
        ``minutes`` of training; ``top1`` of the exact twin and of the library; ``differing``: the
        library's outputs that are not the twin's, bit for bit.

    Raises
    ------
    DataError, TrainingError, QuantizationError
        When a file is not there, or the recipe or a choice is none.
    """
    import tvmquant
    from tvmquant.layers import quantizable_layers, uniform_choices

    wanted = {name: BitChoice.parse(name) for name in choices}
    chosen = tvmquant.Recipe.read(recipe, changes)
    task = TASKS[MODEL]
    check_files(folder, task)
    torch.set_num_threads(threads)
    make = RowMaker("training", threads, machine_facts(target))
    graph = tvmquant.load_onnx(folder / "models" / task.model)
    data = open_images(folder, task, TRAINING, 500)
    test = read_images(folder, task, task.evaluation)
    rows: list[Row] = []
    for name, choice in wanted.items():
        trained = tvmquant.train(
            graph, data, chosen, out=out / f"{recipe}-{name}", stage=stage,
            choices=uniform_choices(quantizable_layers(graph), choice),
        )  # fmt: skip
        taken = sum(len(data) / epoch["items_per_second"] for epoch in trained.history)
        facts = {"epochs": chosen.epochs, "recipe": recipe}
        rows.append(make(MODEL, f"trained-{name}", "minutes", taken / 60, "min", **facts))
        rows += deployed(make, MODEL, f"-{name}", trained.graph, test, stage)
    return rows


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
    import tvmquant
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
