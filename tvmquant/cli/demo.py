"""``tvmquant demo``: the whole way on a small network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmquant.cli import options
from tvmquant.cli.output import (
    StageReporter,
    make_table,
    megabytes,
    percent,
    print_json,
    print_tables,
)

if TYPE_CHECKING:
    from tvmquant.cli.output import TitledTable
    from tvmquant.demo import Demo


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the model, the data and the libraries.")
    ] = Path("tvmquant-demo"),
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a small network on handwritten digits, compile it to integers and compare with float.

    Takes less than a minute. Needs scikit-learn: pip install 'tvmquant[demo]'.
    """
    from tvmquant.demo import run_demo

    result = run_demo(out, stage=StageReporter(quiet=quiet))
    if as_json:
        print_json(
            {
                "out": str(out),
                **result.evaluation.to_dict(),
                "latency": {name: time.to_dict() for name, time in result.latencies.items()},
                "bytes": result.bytes,
                "float_operators": result.float_operators,
                "seconds": result.seconds,
            }
        )
    else:
        print_tables(_table(result, out))


def _table(result: Demo, out: Path) -> TitledTable:
    evaluation = result.evaluation
    float_top1 = percent(evaluation.reference_top1)
    names = {
        "float_torch": ("float, PyTorch", float_top1, ""),
        "float": ("float, tvmquant", float_top1, ""),
        "library": ("int8, tvmquant", percent(evaluation.top1), percent(evaluation.agreement)),
    }
    rows = [
        (*row, f"{result.latencies[key].median_ms:.3f} ms", megabytes(result.bytes.get(key)))
        for key, row in names.items()
    ]
    title = (
        f"{evaluation.count} digits the network has not seen; {result.float_operators} float "
        f"operators in {out / 'int8'}; {result.seconds:.0f} s"
    )
    return make_table(title, ["", "top-1>", "agreement>", "latency>", "size>"], rows)
