"""A ReActNet trained on CIFAR-10, deployed, and compared with its exact twin on all test images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.accuracy import TASKS, Task, check_files, open_images
from benchmarks.models.exporter import export_onnx
from benchmarks.models.reactnet import reactnet20
from benchmarks.rows import Row, RowMaker, machine_facts
from benchmarks.training.common import TRAINING, deployed, logits, read_images, top1
from tvmquant.progress import Stage
from tvmquant.training import Recipe
from tvmquant.training.checkpoint import Checkpoint
from tvmquant.training.items import Items, batches_of, steps_of
from tvmquant.training.objective import loss

MODEL = "reactnet20-cifar-wide"
# of its first channels: words of 32 bits are full
WIDTH = 32
SHAPE = (3, 32, 32)
RECIPE = Recipe(
    batch_size=128,
    optimizer={"name": "adam", "lr": 1e-3},
    schedule={"decay": "linear"},
    objective={"labels": 0.5, "distillation": 0.5},
    augmentation={"shift": 4, "mirror": True},
)


def run(
    folder: Path,
    *,
    stage: Stage,
    epochs: int,
    checkpoint: Path,
    compiled: bool = False,
    target: str = "native",
    threads: int,
) -> list[Row]:
    """Train with the labels and a float teacher, compile, and compare 10,000 images' logits.

    Adam, rate falling linearly to 0; loss: half cross entropy with the labels, half with the
    teacher's probabilities; crops moved by up to 4 pixels, half of them mirrored.

    Parameters
    ----------
    folder : Path
        Holds ``models/`` and ``data/``.
    stage : callable
        As of `tvmquant.progress.Stage`.
    epochs : int
        Passes over the 50,000 images.
    checkpoint : Path
        Written after each epoch; where it exists, training goes on from it.
    compiled : bool
        Whether torch compiles the network, which takes a C++ compiler, and computes it in bfloat16.
    target : str
        As of `tvmquant.build`.
    threads : int
        Of the training and of the library.

    Returns
    -------
    list of Row
        ``minutes`` of training; ``top1`` of the float network in torch, of the exact twin and of
        the library; ``differing``: the library's logits that are not the twin's, bit for bit.

    Raises
    ------
    DataError, TrainingError
        When a file is not there, or the checkpoint is of another training.
    """
    task = TASKS["resnet20"]
    check_files(folder, task)
    torch.set_num_threads(threads)
    make = RowMaker("binary_training", threads, machine_facts(target))
    network = reactnet20(10, WIDTH).to(memory_format=torch.channels_last)
    with stage("read images"):
        images = read_images(folder, task, TRAINING)
    recipe = Recipe.read(RECIPE, {"epochs": epochs})
    minutes = _train(network, images, _teacher(folder, task), stage, recipe, checkpoint, compiled)
    rows = [make(MODEL, "torch", "minutes", minutes, "min", epochs=epochs)]
    test = read_images(folder, task, task.evaluation)
    rows += _deployed(make, network, test, folder, task, stage)
    return rows


def _teacher(folder: Path, task: Task) -> nn.Module:
    import tvmquant
    from tvmquant.twin import Twin

    return Twin(tvmquant.load_onnx(folder / "models" / task.model).module).eval()


# -- training --------------------------------------------------------------------------------------


def _train(
    network: nn.Module,
    images: Items,
    teacher: nn.Module,
    stage: Stage,
    recipe: Recipe,
    path: Path,
    compiled: bool,
) -> float:
    """Train a network in place and return the minutes that it took, earlier runs included."""
    optimizer = torch.optim.Adam(network.parameters(), recipe.optimizer.lr)
    steps = steps_of(images, recipe)
    length = recipe.epochs * steps
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / length)
    parts = {"network": network, "optimizer": optimizer, "rate": rate}
    identity = {"recipe": recipe.model_dump_json(), "data": images.digest()}
    checkpoint = Checkpoint(path, identity, parts)
    history = checkpoint.load()
    computed = torch.compile(network) if compiled else network
    for epoch in range(len(history), recipe.epochs):
        start = time.perf_counter()
        network.train()
        with stage(f"epoch {epoch + 1} of {recipe.epochs}") as progress:
            for step, (pixels, labels) in enumerate(batches_of(images, recipe, epoch)):
                with torch.no_grad():
                    taught = teacher(pixels)
                with torch.autocast("cpu", torch.bfloat16, enabled=compiled):
                    found = computed(pixels.contiguous(memory_format=torch.channels_last))
                optimizer.zero_grad()
                loss(found.float(), labels, taught, recipe.objective).backward()
                optimizer.step()
                rate.step()
                progress(step + 1, steps)
        history.append({"seconds": time.perf_counter() - start})
        checkpoint.save(history)
    return sum(epoch["seconds"] for epoch in history) / 60


# -- deployment ------------------------------------------------------------------------------------


def _deployed(
    make: RowMaker, network: nn.Module, test: Items, folder: Path, task: Task, stage: Stage
) -> Iterator[Row]:
    import tvmquant
    from tvmquant.nn import freeze
    from tvmquant.quantization import apply_calibration

    frozen = freeze(network)
    yield make(MODEL, "torch", "top1", top1(logits(frozen, test), test), "%")
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        graph = tvmquant.load_onnx(export_onnx(frozen, Path(scratch, f"{MODEL}.onnx"), SHAPE))
    with stage("calibrate") as progress:
        images = open_images(folder, task, task.calibration, 16)
        calibration = tvmquant.calibrate(graph, images, progress=progress)
    yield from deployed(make, MODEL, "", apply_calibration(graph, calibration), test, stage)
