"""``tvmquant targets``: what to compile for, and what it multiplies with."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tvmquant.cli import options
from tvmquant.cli.output import make_table, print_json, print_tables


def list_targets(
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="Describe this one alone, any target.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List targets by name, their features, and the instructions that layers of some bits take."""
    from tvmquant.target_description import describe_target
    from tvmquant.target_presets import PRESETS, PROCESSORS

    names = [target] if target else ["native", *PRESETS]
    found = [describe_target(name) for name in names]
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
        return
    known = {name: PROCESSORS[name.removeprefix("android-")] for name in PRESETS}
    rows = [
        (
            each.name, each.triple, known.get(each.name, each.processor),
            " ".join(each.features), each.instructions["w8a8"], each.instructions["w4a8"],
            each.instructions["w1a1"],
        )
        for each in found
    ]  # fmt: skip
    columns = ("target", "triple", "processors", "features", "w8a8", "w4a8, w4a4", "w1a1")
    print_tables(make_table("Targets", columns, rows))
