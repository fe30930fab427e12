"""``tvmquant inspect``: the layers of a library, or those that a model would be compiled into."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmquant.cli import options
from tvmquant.cli.output import StageReporter, make_table, megabytes, print_json, print_tables
from tvmquant.errors import DataError

if TYPE_CHECKING:
    from tvmquant.cli.output import TitledTable


def inspect(
    subject: Annotated[
        Path, typer.Argument(metavar="OUT|MODEL.onnx", help="A library, or a float model.")
    ],
    target: Annotated[
        str, typer.Option(help="Of a model: what it would be compiled for.")
    ] = "native",
    width: options.Width = None,
    threads: options.Threads = None,
    batch: Annotated[int, typer.Option(min=1, help="Of a model: the library's batch size.")] = 1,
    requantize: options.Requantize = False,
    dynamic: options.Dynamic = False,
    input_shape: options.InputShapes = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List layers with their kernels and bit widths, what stays float and why, and sizes.

    Of an ONNX model this is what `tvmquant compile` would make of it with 8 bits, or by the scales
    that it brings, found without data.
    """
    if subject.is_dir():
        report = _describe_library(subject, width)
    elif subject.is_file():
        shapes = options.parse_input_shapes(input_shape)
        with StageReporter(quiet=quiet)("inspect"):
            report = _describe_model(subject, target, threads, batch, shapes, requantize, dynamic)
    else:
        raise DataError(
            f"{str(subject)!r} does not exist; expected a folder that `tvmquant compile` wrote, or "
            "an ONNX file"
        )
    if as_json:
        print_json(report)
    else:
        print_tables(*_tables(report))


def _describe_library(folder: Path, width: int | None) -> dict[str, Any]:
    from tvmquant.deploy.manifest import Manifest

    found = Manifest.load(folder).at(width)
    return {"kind": "library", **found.to_dict(), "widths": found.widths}


def _describe_model(
    path: Path,
    target: str,
    threads: int | None,
    batch: int,
    shapes: dict[str, tuple[int | None, ...]],
    requantize: bool,
    dynamic: bool,
) -> dict[str, Any]:
    import dataclasses

    from tvmquant.frontend import load_onnx
    from tvmquant.inspection import preview

    graph = load_onnx(path, input_shapes=shapes or None, requantize=requantize)
    found = preview(graph, target=target, threads=threads, batch=batch, dynamic=dynamic)

    def signature(tensors: list[Any]) -> list[dict[str, Any]]:
        return [{"name": n, "shape": list(shape), "dtype": dtype} for n, shape, dtype in tensors]

    return {
        "kind": "model",
        "model": {"name": graph.name, "path": str(path), "bytes": path.stat().st_size},
        "inputs": signature(graph.inputs),
        "outputs": signature(graph.outputs),
        "target": {"config": target},
        "layers": [dataclasses.asdict(layer) for layer in found.layers],
        "float_audit": [dataclasses.asdict(op) for op in found.float_audit],
    }


def _tables(report: dict[str, Any]) -> list[TitledTable]:
    from tvmquant.deploy.manifest import describe_choice, describe_pairs

    layers = report["layers"]
    pairs = describe_pairs(layer["weight_pairs"] for layer in layers)
    general: list[tuple[str, Any]] = [
        *((f"input {info['name']}", _tensor(info)) for info in report["inputs"]),
        *((f"output {info['name']}", _tensor(info)) for info in report["outputs"]),
        ("target", report["target"]["config"]),
        ("layers", f"{len(layers)}, {len(report['float_audit'])} operators in float"),
        ("multiply-accumulates", f"{sum(layer['macs'] for layer in layers) / 1e6:.1f} M"),
        *([("pairs of weights", pairs)] if pairs else []),
        ("float model", megabytes(report["model"].get("bytes"))),
    ]
    if report["kind"] == "library":
        general.append(("library", megabytes(report["library"]["bytes"])))
        general.append(("threads", report["threads"]))
        if report["widths"]:
            others = ", ".join(str(w) for w in report["widths"] if w != report["width"])
            general.append(("widths", f"{report['width']} here, and also {others}"))
    rows = [
        (
            layer["id"],
            layer["op"],
            _extents(layer["shape"]),
            layer["dtype"],
            describe_choice(layer["choice"], layer["dynamic"], layer["channel_widths"]),
            f"{layer['macs'] / 1e6:.2f} M" if layer["macs"] else "",
            layer["kernel"],
        )
        for layer in layers
    ]
    tables = [
        make_table(report["model"]["name"], ["", ""], general),
        make_table("layers", ["layer", "op", "shape", "type", "bits", "MACs>", "kernel"], rows),
    ]
    if report["float_audit"]:
        audit = [(op["node"], op["op"], op["reason"]) for op in report["float_audit"]]
        tables.append(make_table("computed in float", ["node", "op", "reason"], audit))
    return tables


def _tensor(info: dict[str, Any]) -> str:
    return f"{info['dtype']} {_extents(info['shape'])}"


def _extents(shape: list[int | None]) -> str:
    return "x".join("?" if extent is None else str(extent) for extent in shape)
