"""A ReActNet trained on CIFAR-10, deployed, and compared with its exact twin on all test images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.accuracy import TASKS, Task, check_files, open_images
from benchmarks.models.exporter import export_onnx
from benchmarks.models.reactnet import reactnet20
from benchmarks.rows import Row, RowMaker, machine_facts
from benchmarks.training import TRAINING, Images, deployed, logits, read_images, top1
from tvmquant.atomic_write import atomic_write
from tvmquant.errors import DataError
from tvmquant.progress import Stage

MODEL = "reactnet20-cifar-wide"
# of its first channels: words of 32 bits are full
WIDTH = 32
SHAPE = (3, 32, 32)
BATCH = 128
LEARNING_RATE = 1e-3
# how far a crop is moved, in pixels
SHIFT = 4


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
    DataError
        When a file is not there, or the checkpoint is of another training.
    """
    task = TASKS["resnet20"]
    check_files(folder, task)
    torch.set_num_threads(threads)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    make = RowMaker("binary_training", threads, machine_facts(target))
    network = reactnet20(10, WIDTH).to(memory_format=torch.channels_last)
    with stage("read images"):
        images = read_images(folder, task, TRAINING)
    minutes = _train(network, images, _teacher(folder, task), stage, epochs, checkpoint, compiled)
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
    images: Images,
    teacher: nn.Module,
    stage: Stage,
    epochs: int,
    checkpoint: Path,
    compiled: bool,
) -> float:
    """Train a network in place and return the minutes that it took, earlier runs included."""
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    steps = len(images.labels) // BATCH
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * steps))
    parts = {"network": network, "optimizer": optimizer, "rate": rate}
    done, seconds = _resume(parts, checkpoint, epochs)
    computed = torch.compile(network) if compiled else network
    for epoch in range(done, epochs):
        start = time.perf_counter()
        network.train()
        with stage(f"epoch {epoch + 1} of {epochs}") as progress:
            for step, (pixels, labels) in enumerate(_augmented(images, epoch)):
                with torch.inference_mode():
                    taught = teacher(pixels).softmax(1)
                with torch.autocast("cpu", torch.bfloat16, enabled=compiled):
                    logits = computed(pixels.contiguous(memory_format=torch.channels_last))
                logits = logits.float()
                loss = functional.cross_entropy(logits, labels)
                loss = (loss + functional.cross_entropy(logits, taught.clone())) / 2
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                progress(step + 1, steps)
        seconds += time.perf_counter() - start
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        with atomic_write(checkpoint) as part:
            torch.save({**state, "epochs": epochs, "done": epoch + 1, "seconds": seconds}, part)
    return seconds / 60


def _resume(parts: dict[str, Any], checkpoint: Path, epochs: int) -> tuple[int, float]:
    """Load a checkpoint, if there is one; return the epochs done and the seconds they took."""
    if not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, weights_only=True)
    if state["epochs"] != epochs:
        raise DataError(
            f"--checkpoint {checkpoint}: is of a training of {state['epochs']} epochs, and "
            f"--epochs is {epochs}; give its number, or another file"
        )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["done"], state["seconds"]


def _augmented(images: Images, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's batches in an order of its own, moved and mirrored; the rest is left out."""
    random = torch.Generator().manual_seed(epoch)
    count, size = len(images.labels), SHAPE[-1]
    order = torch.randperm(count, generator=random)
    for chosen in order[: count // BATCH * BATCH].split(BATCH):
        padded = functional.pad(images.pixels[chosen], (SHIFT,) * 4)
        moved = torch.randint(2 * SHIFT + 1, (2, BATCH, 1), generator=random) + torch.arange(size)
        mirrored = torch.rand(BATCH, 1, generator=random) < 0.5
        columns = torch.where(mirrored, moved[1].flip(1), moved[1])
        item = torch.arange(BATCH)[:, None, None]
        rows = moved[0][:, :, None]
        cropped = padded.permute(0, 2, 3, 1)[item, rows, columns[:, None, :]]
        yield cropped.permute(0, 3, 1, 2), images.labels[chosen]


# -- deployment ------------------------------------------------------------------------------------


def _deployed(
    make: RowMaker, network: nn.Module, test: Images, folder: Path, task: Task, stage: Stage
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
