"""``tvmquant export``: write a library's network, or a plan's, as ONNX for other runtimes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tvmquant.cli import options
from tvmquant.cli.output import (
    StageReporter,
    decibels,
    make_table,
    megabytes,
    print_json,
    print_tables,
    print_warning,
)

if TYPE_CHECKING:
    from tvmquant.cli.output import TitledTable
    from tvmquant.export import Exported
    from tvmquant.export.comparison import Comparison, OutputSteps, Steps
    from tvmquant.export.items import Item
    from tvmquant.export.model import Bias
    from tvmquant.session import Reopened


def export_network(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="LIBRARY|PLAN.json",
            help="Folder that `tvmquant compile` wrote, or plan that `tvmquant plan` wrote.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file. Default: MODEL.qdq.onnx.")
    ] = None,
    opset: Annotated[
        int,
        typer.Option(
            help="13 to 25. Below 21 there are no integers of 4 and 16 bits: weights are stored in "
            "bytes, and results that the library keeps in 16 bits stay float."
        ),
    ] = 21,
    bias: Annotated[
        str,
        typer.Option(
            metavar="B",
            help="float, as the library adds it, or int32: rounded to steps of the accumulator, "
            "for runtimes that run no integer kernels otherwise.",
        ),
    ] = "float",
    in_bytes: Annotated[
        bool,
        typer.Option(
            "--bytes",
            help="Store weights of fewer than 8 bits in bytes: ONNX Runtime and OpenVINO multiply "
            "those in integers, packed ones in float.",
        ),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="MODEL.onnx", help="Default: the one the library was compiled from."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE.json",
            help="Of a plan: by default the only one in NAME-measurements beside it.",
        ),
    ] = None,
    bound_pairs: options.BoundPairs = None,
    input_shape: options.InputShapes = None,
    data: options.Data = None,
    preprocess: options.Recipe = None,
    select: options.Select = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Compare on so many items. Default: 4, random: 2.")
    ] = None,
    compares: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Run the file beside the exact integers.")
    ] = True,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a quantized network as ONNX with QuantizeLinear and DequantizeLinear (QDQ).

    Other runtimes run it, and `tvmquant compile` makes the same integers of it again. In the end
    the file is compared with the library on items of --data, or on random inputs: every rounding by
    itself, given the library's own integers, and the outputs from end to end.
    """
    shapes = options.parse_input_shapes(input_shape)
    from tvmquant.export import export_onnx
    from tvmquant.export.opsets import check_opset
    from tvmquant.session import reopen

    check_opset(opset)
    stage = StageReporter(quiet=quiet)
    with stage("load"):
        network = reopen(
            source, model=model, calibration=calibration, bound_pairs=bound_pairs,
            input_shapes=shapes,
        )  # fmt: skip
    out = out or Path(f"{network.annotated.name}.qdq.onnx")
    items = _items(network, data, preprocess, select, limit) if compares else None
    with stage("export"):
        exported = export_onnx(
            network.annotated, out, opset=opset, bias=cast("Bias", bias), packs=not in_bytes,
            plan=network.plan,
        )  # fmt: skip
    comparison = None
    if items is not None:
        from tvmquant.export.comparison import compare

        with stage("compare"):
            comparison = compare(exported, items)
    if as_json:
        print_json(_document(exported, comparison, out, opset, bias))
        return
    print_tables(*_tables(exported, comparison, out, opset))
    if not quiet and (packed := _packed(exported)):
        print_warning(packed)


def _items(
    network: Reopened, data: str | None, preprocess: str | None, select: str | None,
    limit: int | None,
) -> Iterator[Item]:  # fmt: skip
    from tvmquant.data import open_data
    from tvmquant.export.items import ITEMS, RANDOM_ITEMS, items_of, random_items

    graph = network.annotated
    if data is None:
        return random_items(graph, limit or RANDOM_ITEMS)
    recipe = network.preprocess if preprocess is None else preprocess
    dataset = open_data(data, recipe, inputs=graph.item_inputs(), select=select)
    return items_of(dataset, graph, limit or ITEMS)


def _document(
    exported: Exported, comparison: Comparison | None, out: Path, opset: int, bias: str
) -> dict[str, Any]:
    return {
        "out": str(out),
        "model": exported.graph.name,
        "opset": opset,
        "bias": bias,
        "bytes": out.stat().st_size,
        "layers": exported.choices,
        "differences": list(exported.differences),
        "comparison": None if comparison is None else comparison.to_dict(),
    }


def _tables(
    exported: Exported, comparison: Comparison | None, out: Path, opset: int
) -> list[TitledTable]:
    bits = Counter(exported.choices.values())
    rows: list[tuple[str, Any]] = [
        ("opset", opset),
        ("layers by bits", ", ".join(f"{n} {choice}" for choice, n in bits.items())),
        ("file", megabytes(out.stat().st_size)),
    ]
    if comparison is not None:
        rows += [
            ("compared by", f"{comparison.runtime}, optimizations off, {comparison.items} items"),
            ("roundings, each by itself", _steps(comparison.rounding)),
        ]
        outputs = comparison.outputs.items()
        rows += [(f"{name} from end to end", _output(output)) for name, output in outputs]
    differences = [(difference,) for difference in exported.differences]
    return [
        make_table(f"{exported.graph.name}: {out} is ready", ["", ""], rows),
        make_table("otherwise than in the library", [""], differences),
    ]


def _packed(exported: Exported) -> str:
    """Say what runtimes do with weights of types that are narrower than a byte; empty without."""
    from onnx import TensorProto

    kinds = {constant.data_type for constant in exported.model.graph.initializer}
    if kinds & {getattr(TensorProto, "INT2", None)}:
        return (
            "weights of 2 bits have a type of their own, which OpenVINO 2026.4 does not read and "
            "ONNX Runtime 1.31 only without optimizations; --opset 21 stores them in 4 bits"
        )
    if kinds & {TensorProto.INT4}:
        return (
            "layers whose weights are packed run in float in ONNX Runtime and OpenVINO; --bytes "
            "stores these weights in bytes, which both multiply in integers"
        )
    return ""


def _steps(steps: Steps) -> str:
    if not steps.unequal:
        return f"all {steps.count:,} integers equal"
    unit = "step" if steps.largest == 1 else "steps"
    return (
        f"{steps.unequal:,} of {steps.count:,} integers differ ({100 * steps.equal:.4f} % equal), "
        f"by at most {steps.largest} {unit}"
    )


def _output(output: OutputSteps) -> str:
    ratio = decibels(output.sqnr_db)
    if output.steps is None:
        return ratio
    return f"{ratio}; {_steps(output.steps)}"
