"""Train a float graph at chosen bit widths; what is trained is what ships."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.errors import TrainingError
from tvmquant.progress import Stage, silent_stage
from tvmquant.training.recipe import Recipe

if TYPE_CHECKING:
    from tvmquant.bit_choice import BitChoice
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph
    from tvmquant.sensitivity import Sensitivity
    from tvmquant.training.loop import OnEpoch, OnStep

CALIBRATED = 512
CHECKPOINT = "checkpoint.pt"
RECONSTRUCTED = "reconstruction.pt"


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes
    ----------
    graph : Graph
        Level L1: weights, biases, scales and widths. `tvmquant.passes.pipeline.integerize` makes
        the integer graph of it, `tvmquant.export_onnx` a file that `tvmquant compile` takes.
    history : list of dict
        As `training.loop.Training.run` returns it; of 0 epochs only ``top1``, where that is asked
        for.
    sensitivity : Sensitivity, optional
        What choices of layers cost, where the recipe learns that (``importance``).
    widths : dict of int to Graph
        Level L1: the network at every bit width, the widest first, where the recipe trains several
        (``adaptive``); `tvmquant.build` makes one library of them.
    """

    graph: Graph
    history: list[dict[str, float]]
    sensitivity: Sensitivity | None = None
    widths: dict[int, Graph] = dataclasses.field(default_factory=dict)


def train(
    graph: Graph,
    data: Any,
    recipe: Recipe | str | Path = "lsq",
    *,
    out: str | Path,
    choices: Mapping[str, BitChoice] | None = None,
    calibration: Calibration | None = None,
    validation: Any = None,
    stage: Stage = silent_stage,
    teacher: Graph | None = None,
    device: str | None = None,
    on_epoch: OnEpoch = lambda _epoch, _found: None,
    on_step: OnStep = lambda _found: None,
) -> Trained:
    """Train a float graph whose layers compute in integers of chosen widths.

    Parameters
    ----------
    graph : Graph
        Level L0, from `tvmquant.load_onnx`: a classifier.
    data : Dataset, or what `tvmquant.data.open_data` accepts
        Preprocessed, with labels if the recipe asks for them.
    recipe : Recipe, str or Path
        As of `Recipe.read`.
    out : path
        Folder of the checkpoint, which a training that was interrupted goes on from.
    choices : mapping of str to BitChoice, optional
        As of `tvmquant.quantize`.
    calibration : Calibration, optional
        From `tvmquant.calibrate` with ``fold_batch_norm`` as the recipe has it; default: of up to
        512 of the items.
    validation : like `data`, optional
        With labels: the exact twin's top-1 after every epoch.
    stage : Stage
        Shows what is done.
    teacher : Graph, optional
        Level L0, of the same input and classes; default: `graph`. Refused where the recipe has
        no use for it.
    device : str, optional
        As torch names it; default: its GPU, if it has one.
    on_epoch, on_step : callable
        As of `training.loop.Training.run`.

    Raises
    ------
    TrainingError
        See `Recipe.read` and `training.loop.Training.run`.
    DataError, QuantizationError
        As of `tvmquant.calibrate` and `tvmquant.quantize`.

    Notes
    -----
    Of several processes that torchrun has started, each computes its part of every batch; with
    ``batch_norm: live`` statistics are those of its part. The first writes the files.
    """
    from tvmquant.data import Dataset, open_data
    from tvmquant.quantization import calibrate
    from tvmquant.sensitivity.structure import ends_of
    from tvmquant.training import distributed
    from tvmquant.training.binarization import binarized, settled
    from tvmquant.training.checks import check_networks, check_writable
    from tvmquant.training.inserted_norms import with_batch_norms
    from tvmquant.training.items import read
    from tvmquant.training.loop import Training
    from tvmquant.training.reconstruction import Kept, round_anew
    from tvmquant.training.start import start_of
    from tvmquant.twin import Twin

    recipe, folder = Recipe.read(recipe), Path(out)
    inputs = graph.item_inputs()
    check_networks(graph, teacher, recipe)
    where = distributed.chosen_device(device)
    distributed.join(where)
    if distributed.rank() == 0:  # which writes
        check_writable(folder)
    folded = recipe.batch_norm == "folded"

    def opened(source: Any) -> Dataset:
        found = source if isinstance(source, Dataset) else open_data(source, inputs=inputs)
        return found.rebatched(CALIBRATED)

    training_data = opened(data)
    few = training_data.rebatched(16)
    if few.has_length:
        few = few.subset(step=max(1, len(few) // CALIBRATED), limit=CALIBRATED)
    teacher, given, layers = teacher or graph, graph, tuple[str, ...]()
    if recipe.insert_batch_norm:
        if calibration is not None:
            raise TrainingError(
                "insert_batch_norm: the calibration is of a network without what is inserted; "
                "leave calibration out"
            )
        with stage("insert normalizations") as progress:
            graph = with_batch_norms(graph, few, progress)
    if recipe.binarization is not None:
        if calibration is not None:
            raise TrainingError(
                "binarization: the calibration is of a network before its layers are binary; leave "
                "calibration out"
            )
        with stage("make layers binary"):
            graph, layers = binarized(graph, recipe.binarization)
            graph = settled(graph, few) if layers else graph
    choices = {name: choice for name, choice in (choices or {}).items() if name not in layers}
    if calibration is None:
        with stage("calibrate") as progress:
            calibration = calibrate(graph, few, fold_batch_norm=folded, progress=progress)
    start = start_of(graph, calibration, choices, recipe)
    with stage("read") as progress:
        items = read(training_data, progress, folder)
        validated = None if validation is None else read(opened(validation), folder=folder)
    identity = {
        "model": given.fingerprint(),
        "recipe": recipe.model_dump_json(),
        "data": items.digest(),
        "teacher": teacher.fingerprint(),
        "choice of bit widths": str(sorted((k, str(v)) for k, v in choices.items())),
    }
    training = Training(
        graph, calibration, choices, Twin(start.module, mode="quantized"),
        Twin(teacher.module), (ends_of(graph.module)[0], ends_of(teacher.module)[0]), recipe, items,
        validated, where, layers,
    )  # fmt: skip
    if recipe.reconstruction is not None:
        training.check()
        with stage("reconstruct") as progress:
            rounded = round_anew(
                start, graph.fingerprint(), items, recipe, folder,
                Kept(folder / RECONSTRUCTED, identity), progress,
            )  # fmt: skip
            start = rounded.apply(start)
        training = dataclasses.replace(training, twin=Twin(start.module, mode="quantized"))
    if recipe.epochs == 0:
        history = [] if validated is None else [training.validated()]
        return Trained(start, history)
    history = training.run(folder / CHECKPOINT, identity, stage, on_epoch, on_step)
    method = training.method
    return Trained(method.written(), history, method.sensitivity(), method.written_widths())
