"""What all commands write: tables or one JSON document on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from tvmquant.allocation import Plan
    from tvmquant.output_quality import OutputQuality
    from tvmquant.progress import Progress

    TitledTable = tuple[str, Table]

# Of tables that do not go to a terminal: names of layers are long.
PIPE_WIDTH = 160
# Names in a warning.
LISTED = 5


def print_error(message: str) -> None:
    """Print an error on stderr, in red on a terminal."""
    _message("error", "bold red", message)


def print_warning(message: str) -> None:
    """Print a warning on stderr, in yellow on a terminal."""
    _message("warning", "yellow", message)


def warn_untuned(table: Path | None, layers: Sequence[str]) -> None:
    """Name the layers that a table of measurements lacks, if any."""
    if layers:
        names = ", ".join(layers[:LISTED]) + (", ..." if len(layers) > LISTED else "")
        print_warning(
            f"{table or 'the table'} has no measurements of {len(layers)} layers ({names}), which "
            "took the analytic tiling; --tune 10m measures them"
        )


def warn_nearest(path: Path, plan: Plan) -> None:
    """Warn of a plan of weights that are rounded anew, where they are rounded to the nearest."""
    if plan.reconstruction is None:
        return
    from tvmquant.training import Recipe
    from tvmquant.training.reconstruct import is_narrow

    if is_narrow(plan.choices, Recipe.model_validate(plan.reconstruction)):
        print_warning(
            f"{path} was chosen for weights that are rounded anew, and these are rounded to the "
            "nearest; pass --reconstruct too"
        )


def warn_poor(outputs: Sequence[OutputQuality]) -> None:
    """Warn of every output, or part of one, that is far from the float model's."""
    from tvmquant.output_quality import poor_outputs

    for message in poor_outputs(outputs):
        print_warning(message)


def have_parts(outputs: Sequence[OutputQuality]) -> bool:
    """Whether there is more to say of outputs than one figure."""
    return len(outputs) > 1 or any(output.blocks for output in outputs)


def outputs_table(outputs: Sequence[OutputQuality]) -> TitledTable:
    """Return the table of how close outputs, and the parts of them, are to the float model's."""
    rows = []
    for output in outputs:
        rows.append((output.name, "", decibels(output.sqnr_db)))
        rows += [("", block.name, decibels(block.sqnr_db)) for block in output.blocks]
    return make_table("against the float model", ["output", "part", "SQNR>"], rows)


def decibels(value: float | None) -> str:
    """Return a ratio in dB."""
    if value is None:
        return ""
    return "equal" if value == math.inf else f"{value:.1f} dB"


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def print_tables(*tables: TitledTable) -> None:
    """Print tables on stdout, each under its title."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for title, table in tables:
        console.print(Text(title, style="bold"), soft_wrap=True)
        console.print(table)


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> TitledTable:
    """Return a table; columns whose name ends in ``>`` are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        right = column.endswith(">")
        table.add_column(
            column.removesuffix(">"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        # Text, because the names of layers may hold what rich takes for markup.
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return title, table


class StageReporter:
    """Show stages on stderr: a progress bar on a terminal, and a line when a stage has ended.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._describe: Callable[[str], None] = lambda _text: None

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Progress]:
        """Open a stage; yields a callable (done, total), total None where unknown."""
        if self._quiet:
            yield lambda _done, _total: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        console = _stderr()
        start = time.perf_counter()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed()
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as bars:
            task = bars.add_task(name, total=None)
            self._describe = lambda text: bars.update(task, description=f"{name}: {text}")
            yield lambda done, total: bars.update(task, completed=done, total=total)
        self._describe = lambda _text: None
        seconds = time.perf_counter() - start
        console.print(f"{name}: {seconds:.1f} s", highlight=False, markup=False)

    def describe(self, text: str) -> None:
        """Show a text beside the bar of the stage that is open."""
        self._describe(text)


def megabytes(count: int | None) -> str:
    """Return a number of bytes in MB (10^6 bytes)."""
    return "" if count is None else f"{count / 1e6:.2f} MB"


def percent(value: float | None) -> str:
    """Return a value that is in percent already."""
    return "" if value is None else f"{value:.2f} %"


def _message(kind: str, style: str, message: str) -> None:
    from rich.text import Text

    _stderr().print(Text.assemble((f"{kind}: ", style), message), soft_wrap=True, highlight=False)


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)
