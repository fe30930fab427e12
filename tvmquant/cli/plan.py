"""``tvmquant plan``: choose bit widths without building, and look at what is possible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmquant.cli import options
from tvmquant.cli.output import StageReporter, make_table, print_json, print_tables, warn_untuned
from tvmquant.errors import DataError

if TYPE_CHECKING:
    from tvmquant.allocation import Allocation
    from tvmquant.cli.output import TitledTable
    from tvmquant.mixed_precision.choose import Chosen


def plan_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The float model.")],
    data: options.Data = None,
    preprocess: options.Recipe = None,
    select: options.Select = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The plan; measurements are kept beside it.")
    ] = Path("plan.json"),
    latency: options.Latency = None,
    size: options.Size = None,
    bops: options.Bops = None,
    choices: options.Choices = None,
    pins: options.Pins = None,
    free_ends: options.FreeEnds = False,
    sensitivity: options.SensitivityMethod = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Also list the best plan for every latency.")
    ] = False,
    target: Annotated[
        str,
        typer.Option(help="native, a processor such as haswell, or options such as -mcpu=znver4."),
    ] = "native",
    bound_pairs: options.BoundPairs = None,
    requantize: options.Requantize = False,
    reconstruct: options.Reconstruct = False,
    recipe: options.Reconstruction = None,
    table: options.Table = None,
    tune: options.Tune = None,
    rpc: options.Rpc = None,
    rpc_key: options.RpcKey = None,
    threads: options.Threads = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the library to come.")] = 1,
    samples: Annotated[
        int, typer.Option(min=1, help="Calibrate with at most so many items, evenly spread.")
    ] = 512,
    input_shape: options.InputShapes = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose the bit widths of a model and write them as a plan, which may be edited by hand.

    `tvmquant compile --plan` builds it.
    """
    if data is None:
        raise DataError(
            "plan needs data to estimate sensitivity with; pass --data a folder or .tar of images "
            "(with --preprocess), or a .npy or .npz of inputs of shape (N, ...)"
        )
    shapes = options.parse_input_shapes(input_shape)
    wishes = options.parse_wishes(latency, size, bops, choices, pins, free_ends, sensitivity)
    tune_seconds = None if tune is None else options.parse_time("--tune", tune)
    from tvmquant.compilation import plan_onnx

    chosen = plan_onnx(
        model,
        data,
        wishes,
        out=out,
        preprocess=preprocess,
        select=select,
        samples=samples,
        bound_pairs=bound_pairs,
        requantize=requantize,
        input_shapes=shapes,
        target=target,
        threads=threads,
        batch=batch,
        table=table,
        tune_seconds=tune_seconds,
        rpc=rpc,
        rpc_key=rpc_key,
        reconstruct=options.parse_reconstruction(reconstruct, recipe),
        stage=StageReporter(quiet=quiet),
    )
    from tvmquant.mixed_precision.choose import frontier

    points = frontier(chosen) if pareto else []
    if as_json:
        print_json(
            {
                "out": str(out),
                "plan": chosen.plan.model_dump(),
                "frontier": [_facts(point) for point in points],
                "untuned": list(chosen.latency.untuned),
            }
        )
        return
    if not quiet:
        warn_untuned(table, chosen.latency.untuned)
    tables = [_table(chosen, out)]
    if points:
        tables.append(_frontier(points))
    print_tables(*tables)


def _facts(point: Allocation) -> dict[str, Any]:
    choices = {name: str(choice) for name, choice in point.choices.items()}
    return {**point.totals, "perturbation": point.perturbation, "choices": choices}


def _table(chosen: Chosen, out: Path) -> TitledTable:
    rows = [
        (
            name,
            layer.choice,
            f"{chosen.latency.layers[name][layer.choice] * 1e3:.1f}",
            f"{chosen.sensitivity.perturbation[name][layer.choice]:.2e}",
            layer.reason,
        )
        for name, layer in chosen.plan.layers.items()
    ]
    totals, int8 = chosen.allocation.totals, chosen.allocation.reference
    title = (
        f"{out}: {totals['latency']:.3f} ms predicted, "
        f"{totals['latency'] / int8['latency']:.2f}x of int8; weights "
        f"{totals['size'] / 1e6:.2f} MB, {totals['size'] / int8['size']:.2f}x"
    )
    return make_table(title, ["layer", "bits", "us>", "perturbation>", "why"], rows)


def _frontier(points: list[Allocation]) -> TitledTable:
    rows = [
        (
            f"{point.totals['latency']:.3f}",
            f"{point.totals['latency'] / point.reference['latency']:.2f}x",
            f"{point.totals['size'] / 1e6:.2f}",
            f"{point.perturbation:.3e}",
        )
        for point in points
    ]
    return make_table(
        "least perturbation by latency", ["ms>", "of int8>", "MB>", "perturbation>"], rows
    )
