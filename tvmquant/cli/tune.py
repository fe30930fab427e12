"""``tvmquant tune``: measure and tune a model's kernels on the target."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmquant import default_choices
from tvmquant.cli import options
from tvmquant.cli.output import make_table, print_json, print_tables, print_warning

if TYPE_CHECKING:
    from tvmquant.bit_choice import BitChoice
    from tvmquant.cli.output import TitledTable
    from tvmquant.tuning.tune import Tuned
    from tvmquant.tuning.tuner import TuningProgress

INTERRUPTED = 130


def tune_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The float model.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Folder of the measurements and of the latency table; added to."
        ),
    ],
    target: Annotated[
        str,
        typer.Option(help="native, a processor such as haswell, or options such as -mcpu=znver4."),
    ] = "native",
    threads: options.Threads = None,
    choices: Annotated[
        str,
        typer.Option(
            metavar="C,C,...", help="Bit widths to measure every layer with, of 1 to 8 bits."
        ),
    ] = ",".join(default_choices.NAMES),
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Kernels to measure. Default: 64 for each distinct layer."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="T", help="End after this time: 90s, 10m or 1h.")
    ] = None,
    bound_pairs: options.BoundPairs = None,
    requantize: options.Requantize = False,
    rpc: options.Rpc = None,
    rpc_key: options.RpcKey = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the library to come.")] = 1,
    input_shape: options.InputShapes = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what each layer costs with each bit width, and find fast tilings for its kernels.

    A model that is quantized already (QDQ) is measured as it is. Every measurement is kept in OUT
    as soon as it is made; Ctrl-C ends the run, and a later one continues. TVM's RPC servers ask for
    no password: run them with --host 127.0.0.1 or in a network that you trust.
    """
    shapes = options.parse_input_shapes(input_shape)
    wanted = _parse_choices(choices)
    seconds = None if time is None else options.parse_time("--time", time)
    from tvmquant.frontend import load_onnx

    graph = load_onnx(model, input_shapes=shapes or None, requantize=requantize)
    from tvmquant.devices.tracker import Tracker
    from tvmquant.machine import Machine
    from tvmquant.session import Options
    from tvmquant.tuning.tune import tune

    tracker = Tracker.of(rpc, rpc_key)
    machine = Machine.of(target, threads, remote=tracker is not None)
    with _progress(quiet) as (stage, report):
        tuned = tune(
            graph,
            out,
            target=machine,
            choices=wanted,
            batch=batch,
            quantize_options=Options(bound_pairs=bound_pairs).rounding(machine),
            trials=trials,
            seconds=seconds,
            rpc=tracker,
            stage=stage,
            progress=report,
        )
    if tuned.tuning.failed and not as_json and not quiet:
        print_warning(f"{tuned.tuning.failed} of {tuned.tuning.trials} kernels failed")
    if tuned.tuning.unsettled and not as_json and not quiet:
        print_warning(
            f"the times of {tuned.tuning.unsettled} of {tuned.workloads} kernels vary from "
            "measurement to measurement; tune again while nothing else runs"
        )
    summary = summarize(tuned, graph.name)
    if as_json:
        print_json(summary)
    else:
        print_tables(_table(summary))
    if tuned.tuning.interrupted:
        raise typer.Exit(INTERRUPTED)


def summarize(tuned: Tuned, model: str) -> dict[str, Any]:
    """Return what the command reports."""
    tuning = tuned.tuning
    return {
        "model": model,
        "database": str(tuned.database.path),
        "latency_table": str(tuned.table_path),
        "target": tuned.database.header.target,
        "threads": tuned.database.machine.threads,
        "layers": tuned.layers,
        "workloads": tuned.workloads,
        "trials": tuning.trials,
        "failed": tuning.failed,
        "confirmations": tuning.confirmations,
        "unsettled": tuning.unsettled,
        "skipped_records": tuned.database.skipped,
        "seconds": tuning.seconds,
        "interrupted": tuning.interrupted,
        "choices": _by_choice(tuned, model),
    }


def _by_choice(tuned: Tuned, model: str) -> dict[str, dict[str, float]]:
    """Return for each choice the sums over the layers that have it."""
    sums: dict[str, dict[str, float]] = {}
    for entry in tuned.table.entries:
        if entry.model == model:
            row = sums.setdefault(entry.choice, {"layers": 0, "default_ms": 0.0, "tuned_ms": 0.0})
            row["layers"] += 1
            row["default_ms"] += entry.default_ms
            row["tuned_ms"] += entry.median_ms
    return sums


def _table(summary: dict[str, Any]) -> TitledTable:
    rows = [
        (
            choice,
            row["layers"],
            f"{row['default_ms']:.3f}",
            f"{row['tuned_ms']:.3f}",
            f"{row['default_ms'] / row['tuned_ms']:.2f}x",
        )
        for choice, row in summary["choices"].items()
    ]
    state = "interrupted" if summary["interrupted"] else "tuned"
    title = (
        f"{summary['model']}: {summary['workloads']} kernels {state} in "
        f"{summary['seconds']:.0f} s, {summary['trials']} trials; {summary['latency_table']}"
    )
    return make_table(title, ["choice", "layers>", "default ms>", "tuned ms>", "gain>"], rows)


@contextlib.contextmanager
def _progress(
    quiet: bool,
) -> Iterator[tuple[Callable[[str], None], Callable[[TuningProgress], None]]]:
    """Show stage, trials, best so far and the time that is left on stderr."""
    if quiet:
        yield (lambda _name: None), (lambda _progress: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("load", total=None)

        def stage(name: str) -> None:
            bars.update(task, description=name)
            if not console.is_terminal:
                console.print(f"{name} ...", highlight=False, markup=False)

        def report(state: TuningProgress) -> None:
            total = state.elapsed + state.remaining if state.remaining is not None else None
            bars.update(
                task, description=describe(state), completed=state.elapsed, total=total
            )  # fmt: skip

        yield stage, report


def describe(state: TuningProgress) -> str:
    """Return the progress of a run in one line.

    Examples
    --------
    >>> from tvmquant.tuning.tuner import TuningProgress
    >>> describe(TuningProgress(7, 64, 10.0, 90.0, 12.0, 8.0, "search"))
    'search: 7/64 trials, 12.00 -> 8.00 ms, 1:30 left'
    """
    trials = f"{state.trials}" if state.total is None else f"{state.trials}/{state.total}"
    text = f"{state.stage}: {trials} trials, {state.default_ms:.2f} -> {state.best_ms:.2f} ms"
    if state.remaining is None:
        return text
    minutes, seconds = divmod(round(state.remaining), 60)
    return f"{text}, {minutes}:{seconds:02d} left"


def _parse_choices(text: str) -> list[BitChoice]:
    from tvmquant.bit_choice import BitChoice

    return [BitChoice.parse(part) for part in text.split(",")]
