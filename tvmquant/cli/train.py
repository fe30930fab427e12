"""``tvmquant train``: train a model at its bit widths, and write what `compile` takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmquant.cli import options
from tvmquant.cli.output import StageReporter, make_table, percent, print_json, print_tables
from tvmquant.errors import DataError, TrainingError

TRAINED = "trained.onnx"
SENSITIVITY = "sensitivity.json"


def train_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A classifier.")],
    data: options.Data = None,
    preprocess: options.Recipe = None,
    select: options.Select = None,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            metavar="D",
            help="Labelled data as --data, on which the exact integers are evaluated every epoch.",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="R", help="A recipe's name (lsq), or a YAML file.")
    ] = "lsq",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change a field of the recipe, such as epochs=5 or optimizer.lr=0.005.",
        ),
    ] = None,
    choice: Annotated[
        str | None,
        typer.Option(
            "--choice", metavar="C", help="Bit widths of all layers but the ends; default: w4a4."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="plan.json", help="Take the bit widths from a plan."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher", metavar="M.onnx", help="Who teaches; default: the float model itself."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="D", help="As torch names it; default: a GPU, if any."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Default: NAME-trained."),
    ] = None,
    threads: options.Threads = None,
    input_shape: options.InputShapes = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model whose layers compute in integers, with the labels of --data or without.

    OUT holds the checkpoint, from which the same command goes on when it was interrupted, and in
    the end trained.onnx (QDQ): `tvmquant compile` makes exactly the integers of it that were
    trained. A recipe that learns what layers are worth (limpq) writes sensitivity.json too, which
    `tvmquant plan --sensitivity` takes. One that trains several widths (coquant) writes
    trained-w8.onnx and so on: `tvmquant compile OUT` makes one library of them. One of few values
    (reactnet, bnn, twn, ...) makes the layers of its section `binarization` binary first.
    """
    if data is None:
        raise DataError(
            "train needs data; pass --data a folder or .tar of images (labelled by labels.csv or "
            "class folders), or a .npz with 'images' and 'labels'"
        )
    from tvmquant.data import open_data
    from tvmquant.devices.host import physical_cores
    from tvmquant.export import export_onnx
    from tvmquant.frontend import load_onnx
    from tvmquant.training import Recipe, train
    from tvmquant.training.given_choices import given_choices

    chosen = Recipe.read(recipe, dict(map(parse_change, changes or [])))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun, on this machine
    threads = threads or max(1, physical_cores() // processes)
    import torch

    torch.set_num_threads(threads)
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes one reports
    quiet = quiet or not first
    stage = StageReporter(quiet=quiet)
    with stage("load"):
        shapes = options.parse_input_shapes(input_shape)
        graph = load_onnx(model, input_shapes=shapes)
        taught = None if teacher is None else load_onnx(teacher, input_shapes=shapes)
    folder = out or Path(f"{model.stem}-trained")
    inputs = graph.item_inputs()
    validated = None
    if validation is not None:
        validated = open_data(validation, preprocess, inputs=inputs)
    trained = train(
        graph,
        open_data(data, preprocess, inputs=inputs, select=select),
        chosen,
        out=folder,
        choices=given_choices(graph, chosen, choice, plan),
        validation=validated,
        teacher=taught,
        device=device,
        stage=stage,
        on_epoch=(lambda _epoch, _found: None) if quiet else _print_epoch,
        on_step=lambda found: stage.describe(_in_words(found)),
    )
    if not first:
        return
    file = folder / TRAINED
    with stage("export"):
        for stale in folder.glob(f"{file.stem}-w*{file.suffix}"):
            stale.unlink()  # or they would pass for widths of this network
        for width, at_width in trained.widths.items():
            export_onnx(at_width, file.with_stem(f"{file.stem}-w{width}"))
        if not trained.widths:
            export_onnx(trained.graph, file)
    file = folder if trained.widths else file
    document = {"out": str(file), "recipe": chosen.model_dump(), "epochs": trained.history}
    if trained.sensitivity is not None:
        learned = folder / SENSITIVITY
        trained.sensitivity.save(learned)
        document["sensitivity"] = str(learned)
    if as_json:
        print_json(document)
        return
    title = f"{graph.name}: {file} is ready for tvmquant compile"
    if trained.sensitivity is not None:
        title += f", {learned} for tvmquant plan --sensitivity"
    if trained.history:
        print_tables(_table(trained.history, title))
    else:
        typer.echo(title)


def parse_change(text: str) -> tuple[str, Any]:
    """Return the field and the value of ``--set FIELD=VALUE``."""
    import yaml

    field, separator, value = text.partition("=")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        separator = ""
    if not separator:
        raise TrainingError(f"--set {text!r}; expected FIELD=VALUE, such as optimizer.lr=0.005")
    return field.strip(), parsed


def _print_epoch(epoch: int, found: dict[str, float]) -> None:
    typer.echo(f"epoch {epoch}: {_in_words(found)}", err=True)


def _in_words(found: dict[str, float]) -> str:
    parts = [f"loss {found['loss']:.4f}"]
    if "top1_training" in found:
        parts.append(f"{percent(found['top1_training'])} while training")
    parts += [f"{_words(name)} {percent(found[name])}" for name in _validated(found)]
    sizes = [name for name in ("weights", "activations") if name in found]
    parts += [f"{name} at {percent(found[name])} of 8 bits" for name in sizes]
    parts.append(f"{found['items_per_second']:.0f} items/s")
    if "minutes_left" in found:
        parts.append(f"{found['minutes_left']:.0f} min left")
    return ", ".join(parts)


def _validated(found: dict[str, float]) -> list[str]:
    """Return the names of what was validated."""
    return [name for name in found if name.startswith("top1") and name != "top1_training"]


def _words(name: str) -> str:
    return name.replace("top1", "top-1").replace("_", " ")


def _table(history: list[dict[str, float]], title: str) -> Any:
    validated = list(dict.fromkeys(name for found in history for name in _validated(found)))
    labelled = any("top1_training" in found for found in history)
    rows = [
        (
            str(index + 1) if "loss" in found else "",
            f"{found['loss']:.4f}" if "loss" in found else "",
            *([percent(found.get("top1_training"))] if labelled else []),
            *(percent(found.get(name)) for name in validated),
        )
        for index, found in enumerate(history)
    ]
    heads = [f"exact integers{name.removeprefix('top1').replace('_', ' ')}>" for name in validated]
    training = ["while training>"] if labelled else []
    return make_table(title, ["epoch", "loss>", *training, *heads], rows)
