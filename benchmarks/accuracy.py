"""Accuracy of deployed libraries: trained models, quantized after training, on held-out images."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.bit_choice import BitChoice
from tvmquant.data import Dataset, open_data
from tvmquant.errors import DataError
from tvmquant.progress import Stage


@dataclasses.dataclass(frozen=True)
class Task:
    """A trained model with the images that it is calibrated with and evaluated on.

    Attributes
    ----------
    model : str
        File in ``models/``.
    preprocess : str
        The preset of `tvmquant.Preprocess` that the model was trained with.
    calibration, evaluation : (str, str or None)
        Archive in ``data/`` and which of its images; see `tvmquant.data.open_data`.
    batch : int
        Images that the library takes at once. The result does not depend on it.
    """

    model: str
    preprocess: str
    calibration: tuple[str, str | None]
    evaluation: tuple[str, str | None]
    batch: int


TASKS = {
    "squeezenet": Task(
        model="squeezenet1.1-imagenet.onnx",
        preprocess="squeezenet-caffe",
        calibration=("imagenet-1000.tar", "step=10"),
        evaluation=("imagenet-1000.tar", "step=10,exclude"),
        batch=1,
    ),
    # the images are sorted by class: every 97th makes 512 of all ten
    "resnet20": Task(
        model="resnet20-cifar10.onnx",
        preprocess="cifar10",
        calibration=("cifar10-train.tar", "step=97,limit=512"),
        evaluation=("cifar10-test.tar", None),
        batch=50,
    ),
}


def run(
    folder: Path,
    *,
    stage: Stage,
    models: Sequence[str] = tuple(TASKS),
    limit: int | None = None,
    calibration_options: dict[str, Any] | None = None,
    quantize_options: dict[str, Any] | None = None,
    choices: Sequence[str] = ("w8a8",),
    target: str = "native",
    threads: int,
) -> list[Row]:
    """Quantize trained models after training and evaluate the libraries beside the float models.

    Parameters
    ----------
    folder : Path
        Holds ``models/`` and ``data/``.
    stage : callable
        Called with the name of each stage; see `tvmquant.progress.Stage`.
    models : sequence of str
        Of `TASKS`.
    limit : int, optional
        Evaluate at most so many images, spread evenly over all.
    calibration_options, quantize_options : dict, optional
        As of `tvmquant.calibrate` and `tvmquant.quantize`; their defaults where not given.
    choices : sequence of str
        Each for a network of its own, all layers of which take it, but the first and the last.
    target : str
        As of `tvmquant.build`.
    threads : int
        Threads that the libraries compute with.

    Returns
    -------
    list of Row
        ``top1`` of config ``float``; ``top1``, ``agreement``, ``sqnr_db`` and ``library_bytes`` of
        ``tvmquant-w8a8`` and so on.

    Raises
    ------
    DataError
        When a model is unknown, or a file is not there.
    QuantizationError
        When a choice is none.
    """
    wanted = [BitChoice.parse(name) for name in choices]
    tasks = {name: _find(name) for name in models}
    for task in tasks.values():
        check_files(folder, task)
    make = RowMaker("accuracy", threads, machine_facts(target))
    rows: list[Row] = []
    for name, task in tasks.items():
        options = (calibration_options or {}, quantize_options or {})
        rows += _evaluate(make, name, task, folder, stage, limit, options, wanted)
    return rows


def _evaluate(
    make: RowMaker,
    name: str,
    task: Task,
    folder: Path,
    stage: Stage,
    limit: int | None,
    options: tuple[dict[str, Any], dict[str, Any]],
    choices: Sequence[BitChoice],
) -> list[Row]:
    import tvmquant
    from tvmquant.layers import quantizable_layers, uniform_choices

    calibration_options, quantize_options = options
    scheme = {k: v for k, v in calibration_options.items() if k == "activation_scheme"}
    target, threads = str(make.facts["target"]), make.threads
    rounding = {**target_rounding(target), **quantize_options}
    graph = tvmquant.load_onnx(folder / "models" / task.model)
    images = open_images(folder, task, task.calibration, 16)
    with stage(f"{name}: calibrate") as progress:
        calibration = tvmquant.calibrate(graph, images, progress=progress, **calibration_options)
    held_out = open_images(folder, task, task.evaluation, max(task.batch, 10))
    if limit is not None:
        held_out = held_out.subset(step=max(1, len(held_out) // limit), limit=limit)
    rows: list[Row] = []
    for choice in choices:
        quantized = tvmquant.quantize(
            graph, calibration, choices=uniform_choices(quantizable_layers(graph), choice),
            **scheme, **rounding,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
            out = Path(scratch, name)
            with stage(f"{name}: build {choice}"):
                tvmquant.build(quantized, target=target, out=out, threads=threads, batch=task.batch)
            library = tvmquant.load(out)
            with stage(f"{name}: evaluate {choice}") as progress:
                found = tvmquant.evaluate(library, held_out, reference=graph, progress=progress)
        extra = {"images": found.count, "calibration_images": len(images)}
        if not rows:
            rows.append(make(name, "float", "top1", found.reference_top1, "%", **extra))
        size = library.manifest.library["bytes"]
        rows += _rows(make, name, f"tvmquant-{choice}", found, size, extra)
    return rows


def _rows(
    make: RowMaker, name: str, config: str, found: Any, size: int, extra: dict[str, int]
) -> Iterator[Row]:
    yield make(name, config, "top1", found.top1, "%", **extra)
    yield make(name, config, "agreement", found.agreement, "%", **extra)
    yield make(name, config, "sqnr_db", found.sqnr_db, "dB", **extra)
    yield make(name, config, "library_bytes", size, "B", **extra)


def _find(name: str) -> Task:
    if name not in TASKS:
        raise DataError(f"--models: {name!r} is unknown; expected some of {', '.join(TASKS)}")
    return TASKS[name]


def open_images(
    folder: Path, task: Task, images: tuple[str, str | None], batch_size: int
) -> Dataset:
    """Open some images of a task."""
    archive, select = images
    return open_data(
        folder / "data" / archive, task.preprocess, batch_size=batch_size, select=select
    )


def check_files(folder: Path, task: Task) -> None:
    """Raise `DataError` where the model or an archive of a task is not there."""
    data = {task.calibration[0], task.evaluation[0]}
    for path in (folder / "models" / task.model, *(folder / "data" / name for name in data)):
        require_file(path)


def require_file(path: Path) -> None:
    """Raise `DataError` where a trained model or an archive of images is not there."""
    if not path.is_file():
        raise DataError(
            f"{path} is not there; pass --data DIR, a folder that holds models/ and data/ with "
            "the files that benchmarks/README.md lists"
        )
