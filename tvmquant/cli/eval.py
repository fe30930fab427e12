"""``tvmquant eval``: accuracy of a library, and how close it stays to the float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmquant.cli import options
from tvmquant.cli.float_model import is_available, load_float_model
from tvmquant.cli.output import (
    StageReporter,
    have_parts,
    make_table,
    outputs_table,
    percent,
    print_json,
    print_tables,
    print_warning,
    warn_poor,
)
from tvmquant.errors import DataError

if TYPE_CHECKING:
    from tvmquant.cli.output import TitledTable
    from tvmquant.evaluation import Evaluation


def evaluate_library(
    library: options.Library,
    data: options.Data = None,
    preprocess: options.Recipe = None,
    select: options.Select = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="MODEL.onnx", help="Default: the one OUT was compiled from."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate only the first so many items.")
    ] = None,
    width: options.Width = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate a library on data: top-1, top-5, agreement with the float model, SQNR.

    The float model is computed by PyTorch from the ONNX file. Without labels only agreement and
    SQNR are reported; of several outputs, and of the parts that an output joins, each by itself.
    --preprocess defaults to the recipe that the library was calibrated with.
    """
    if data is None:
        raise DataError(
            "eval needs data; pass --data a folder or .tar of images (labelled by labels.csv or "
            "class folders), or a .npz with 'images' and 'labels'"
        )
    from tvmquant.data import open_data
    from tvmquant.deploy.loader import load
    from tvmquant.evaluation import evaluate, item_inputs

    deployed = load(library, threads=threads, width=width)
    recipe = deployed.manifest.preprocess if preprocess is None else preprocess
    dataset = open_data(data, recipe, inputs=item_inputs(deployed), select=select)
    if limit is not None:
        dataset = dataset.subset(limit=limit)
    graph = None
    if model is None and dataset.has_labels and not is_available(deployed.manifest, None):
        print_warning(
            "the float model is not there, so the library is not compared with it; pass --model "
            "MODEL.onnx"
        )
    else:
        graph = load_float_model(deployed.manifest, model)
    with StageReporter(quiet=quiet)("evaluate") as progress:
        result = evaluate(deployed, dataset, reference=graph, progress=progress)
    if as_json:
        print_json({"library": str(library), "data": dataset.name, **result.to_dict()})
    else:
        tables = [evaluation_table(result, f"{library} on {result.count} items")]
        if have_parts(result.outputs):
            tables.append(outputs_table(result.outputs))
        print_tables(*tables)
        warn_poor(result.outputs)


def evaluation_table(result: Evaluation, title: str) -> TitledTable:
    """Return the table of an evaluation: a row for each of library and float model."""
    rows = [
        (
            "library",
            percent(result.top1),
            percent(result.top5),
            percent(result.agreement),
            "" if result.sqnr_db is None else f"{result.sqnr_db:.1f} dB",
        )
    ]
    if result.agreement is not None:
        rows.append(
            ("float", percent(result.reference_top1), percent(result.reference_top5), "", "")
        )
    return make_table(title, ["", "top-1>", "top-5>", "agreement>", "SQNR>"], rows)
