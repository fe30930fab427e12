"""The flat rows that every benchmark writes: one figure each, with what produced it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from tvmquant.atomic_write import atomic_write
from tvmquant.errors import DataError

Row: TypeAlias = "dict[str, str | int | float | None]"

# the keys that every row has, in the order of a table's columns
KEYS = ("benchmark", "model", "config", "metric", "value", "unit", "threads")


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Make rows that share a benchmark, a number of threads, and facts about the machine.

    Parameters
    ----------
    benchmark : str
    threads : int
        Threads that computed.
    facts : mapping
        Further keys of every row; see `machine_facts`.

    Examples
    --------
    >>> RowMaker("latency", 2, {"isa": "vnni512"})("net", "float", "latency_ms", 1.5, "ms", n=3)
    {'benchmark': 'latency', 'model': 'net', 'config': 'float', 'metric': 'latency_ms', \
'value': 1.5, 'unit': 'ms', 'threads': 2, 'n': 3, 'isa': 'vnni512'}
    """

    benchmark: str
    threads: int
    facts: Mapping[str, str | int | float]

    def __call__(
        self, model: str, config: str, metric: str, value: float | None, unit: str, **extra: Any
    ) -> Row:
        """Return one row; a value that is not finite is written as None."""
        finite = None if value is None or not math.isfinite(value) else value
        values = (self.benchmark, model, config, metric, finite, unit, self.threads)
        return {**dict(zip(KEYS, values, strict=True)), **extra, **self.facts}


def machine_facts(target: str = "native") -> dict[str, str | int | float]:
    """Return what identifies the machine, and the instructions that a target's kernels use.

    Parameters
    ----------
    target : str
        As of `tvmquant.build`.

    Returns
    -------
    dict
        ``cpu``: the processor's name; ``isa``: the fastest dot product of the target;
        ``physical_cores``: those that this process may use; ``load_average``: of the last minute,
        in processes; ``target``: as given.

    Raises
    ------
    TargetError
        If the target is not valid.
    """
    from tvmquant.devices.host import physical_cores, processor_name
    from tvmquant.schedules.isa import dot_products
    from tvmquant.target import parse_target

    return {
        "cpu": processor_name(),
        "isa": dot_products(parse_target(target))[0].name,
        "physical_cores": physical_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "target": target,
    }


def target_rounding(target: str) -> dict[str, bool]:
    """Return the arguments of `tvmquant.quantize` that round weights as a target needs them."""
    from tvmquant.machine import Machine
    from tvmquant.session import Options

    return Options().rounding(Machine.of(target))


def check_destination(path: Path | None) -> None:
    """Raise `DataError` where `write_rows` could not write, before anything slow begins."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"--json {path}: expected a file in an existing folder that can be written")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as one JSON list, a row a line. The file appears complete or not at all."""
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    with atomic_write(path) as part:
        part.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def print_rows(
    rows: Iterable[Row], *, columns: Iterable[str] = (), last: Iterable[str] = ()
) -> None:
    """Print rows as a table on stdout.

    Parameters
    ----------
    columns, last : iterable of str
        Further keys to show, after the model's and after all others.
    """
    from tvmquant.cli.output import make_table, print_tables

    last = list(last)
    chosen = ["model", *columns, "config", "metric", "value", "unit", "threads", *last]
    rows = list(rows)
    if not rows:
        return
    cells = [[_cell(row.get(key)) for key in chosen] for row in rows]
    facts = (str(rows[0].get(key)) for key in ("benchmark", "cpu", "isa") if rows[0].get(key))
    headings = [f"{key}>" if key in ("value", "threads", *last) else key for key in chosen]
    print_tables(make_table(", ".join(facts), headings, cells))


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 10 else _plain(value)


def _plain(value: str | int | float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
