"""The rows about quantized files as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.rows import Row

METRICS = {
    "equal": ("equal %", ".3f"),
    "layers_equal": ("layers %", ".4f"),
    "float64_equal": ("to float64 %", ".3f"),
    "float64_layers_equal": ("layers %", ".4f"),
    "sqnr_db": ("SQNR dB", ".1f"),
    "lost_operators": ("lost", "d"),
    "top1": ("top-1 %", ".2f"),
    "agreement": ("agree %", ".2f"),
}
TIMED = {"latency_ms": ("ms", ".3f"), "ratio_to_best_peer": ("to best peer", ".2f")}


def print_summary(rows: Sequence[Row]) -> None:
    """Print a line for each file and evaluation, and below it what failed or stayed float.

    In brackets stands the largest difference in steps.
    """
    from tvmquant.cli.output import make_table, print_tables

    counts = sorted({int(row["threads"] or 1) for row in rows if row["metric"] in TIMED})
    lines: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        line = lines.setdefault((row["model"], row["quantization"], row["config"]), {})
        metric = row["metric"]
        line[(metric, row["threads"]) if metric in TIMED else metric] = row
    columns = ["model", "file", "evaluated by", *(f"{title}>" for title, _ in METRICS.values())]
    formats: dict[Any, str] = {metric: form for metric, (_, form) in METRICS.items()}
    for count in counts:
        for metric, (title, form) in TIMED.items():
            columns.append(f"{title}, {count} threads>")
            formats[metric, count] = form
    cells, notes = [], []
    for key, line in lines.items():
        cells.append([*map(str, key), *(_cell(line.get(m), form) for m, form in formats.items())])
        if reason := line.get("works", {}).get("reason"):
            notes.append([*map(str, key), str(reason)])
        elif names := line.get("float_operators", {}).get("names"):
            notes.append([*map(str, key), f"float: {names}"])
    facts = ", ".join(str(rows[0][key]) for key in ("benchmark", "cpu", "isa")) if rows else ""
    print_tables(make_table(facts, columns, cells))
    if notes:
        print_tables(make_table("", ["model", "file", "evaluated by", "why"], notes))


def _cell(row: Row | None, form: str) -> str:
    if row is None or row["value"] is None:
        return ""
    steps = f" ({row['most_steps']})" if row.get("most_steps") else ""
    return format(row["value"], form) + steps
