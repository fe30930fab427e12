"""``tvmquant report``: one HTML page about a library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmquant.cli import options
from tvmquant.cli.output import StageReporter, print_json


def report(
    library: options.Library,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: report.html in OUT."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time every layer now, on this machine.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a page that shows bit widths, latency, memory, and why they are as they are.

    It is one HTML file that opens in any browser, without a network.
    """
    from tvmquant.report import write_report

    with StageReporter(quiet=quiet)("report"):
        path = write_report(library, out, profile)
    if as_json:
        print_json({"library": str(library), "report": str(path), "bytes": path.stat().st_size})
    else:
        typer.echo(f"{path}")
