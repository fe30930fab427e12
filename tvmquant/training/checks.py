"""What is refused before a training begins: data, a teacher or a batch that do not fit."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from tvmquant.errors import TrainingError
from tvmquant.graph import Graph
from tvmquant.training import distributed
from tvmquant.training.items import Items
from tvmquant.training.recipe import Recipe
from tvmquant.training.sections import Objective
from tvmquant.twin import Twin


def check_networks(graph: Graph, teacher: Graph | None, recipe: Recipe) -> None:
    """Refuse a network of several inputs, and a teacher of another input or of no use.

    Parameters
    ----------
    graph : Graph
    teacher : Graph, optional
        Another than `graph`.
    recipe : Recipe

    Raises
    ------
    TrainingError
    """
    inputs = graph.item_inputs()
    if len(inputs) != 1:
        raise TrainingError(
            f"{graph.name!r} has {len(inputs)} inputs; only networks of one are trained yet"
        )
    if teacher is None:
        return
    taught = [
        phase.objective.is_taught and phase.objective.teacher == "float"
        for phase in recipe.in_phases()
    ]
    if not any(taught):
        raise TrainingError(
            "the recipe asks no teacher; leave it out, or set objective.distillation above 0 and "
            "objective.teacher to float"
        )
    shapes = [each.shape for each in teacher.item_inputs()]
    if shapes != [inputs[0].shape]:
        takes = " and ".join(map(str, shapes))
        raise TrainingError(
            f"the teacher does not fit the model: it takes {takes} of an item, the model "
            f"{inputs[0].shape}"
        )


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing can be written to; leave no trace.

    Raises
    ------
    TrainingError
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TrainingError(
            f"cannot write to {folder} ({error.strerror}); choose another folder"
        ) from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def check_labels(items: Items, classes: int, what: Objective) -> None:
    """Refuse items without labels, or with labels of no class, where labels count.

    Raises
    ------
    TrainingError
    """
    if not what.labels:
        return
    if items.labels is None:
        raise TrainingError(
            "the recipe trains with labels (objective.labels), and the data have none; label "
            "them by class folders or labels.csv, or set objective.labels to 0"
        )
    _check_range(items.labels, classes)


def check_validation(items: Items | None, output: Tensor) -> None:
    """Refuse to validate without labels of classes, or a network that gives no class scores.

    Parameters
    ----------
    items : Items, optional
    output : tensor
        Of the network for some items.

    Raises
    ------
    TrainingError
    """
    if items is None:
        return
    if items.labels is None:
        raise TrainingError(
            "the data to validate with have no labels; label them by class folders or labels.csv, "
            "or leave --validation out"
        )
    check_classifier(output)
    _check_range(items.labels, output.shape[1], " (of the data to validate with)")


def check_classifier(output: Tensor) -> None:
    """Refuse what is no row of class scores for each item.

    Raises
    ------
    TrainingError
    """
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise TrainingError(
            "the model's output is no row of class scores for each item; only classifiers can be "
            "trained or validated yet"
        )


def _check_range(labels: Tensor, classes: int, where: str = "") -> None:
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        wrong = least if least < 0 else most
        raise TrainingError(
            f"label {wrong}{where} is no class of a network of {classes} outputs; expected 0 to "
            f"{classes - 1}"
        )


def check_teacher(twin: Twin, teacher: Twin, inputs: Tensor, what: Objective) -> None:
    """Refuse a teacher of other outputs, or, where they count, of other features.

    Parameters
    ----------
    twin, teacher : Twin
    inputs : float tensor (N, ...)
        That both take.
    what : Objective

    Raises
    ------
    TrainingError
        Says what differs; of features, names the layer.
    """
    own, others = dict[str, Tensor](), dict[str, Tensor]()
    twin.observe_input, teacher.observe_input = own.__setitem__, others.__setitem__
    try:
        with torch.no_grad():
            output, taught = twin(inputs), teacher(inputs)
    finally:
        twin.observe_input = teacher.observe_input = None
    if not isinstance(taught, Tensor) or taught.shape != output.shape:
        found = tuple(taught.shape[1:]) if isinstance(taught, Tensor) else "several tensors"
        raise TrainingError(
            f"the teacher does not fit the model: for an item it gives {found}, the model "
            f"{tuple(output.shape[1:])}; choose one of the same classes"
        )
    if not what.features:
        return
    shared = [name for name in own if name in others]
    if not shared:
        raise TrainingError(
            "objective.features: the teacher has no layer of a name that the model has, "
            f"such as {next(iter(twin.weights))!r}"
        )
    for name in shared:
        mine, theirs = (tuple(read[name].shape[1:]) for read in (own, others))
        if mine != theirs:
            raise TrainingError(
                f"objective.features: layer {name!r} reads {mine} in the model and {theirs} in the "
                "teacher; set objective.features to 0, or choose a teacher whose layers are as wide"
            )


def check_batch(items: Items, recipe: Recipe, twin: Twin) -> None:
    """Refuse a batch that items, processes or normalizations are too few for.

    Raises
    ------
    TrainingError
    """
    size, processes = recipe.batch_size, distributed.size()
    if len(items) < size:
        raise TrainingError(f"{len(items)} items are no batch of {size}; lower batch_size")
    if size % processes:
        raise TrainingError(
            f"a batch of {size} is not divided by {processes} processes; choose a multiple"
        )
    if recipe.batch_norm != "live":
        return
    twin.live_batch_norm = True
    has_norms, twin.live_batch_norm = twin.live_batch_norm, False
    if not has_norms:
        raise TrainingError(
            "batch_norm: live, and the model has no batch normalization (exporters fold "
            "it); set insert_batch_norm to true, or batch_norm to folded, with a tenth of the "
            "learning rate or less"
        )
    if size == processes:
        raise TrainingError("batch_norm: live takes the statistics of more than one item")
