"""``tvmquant compile``: from an ONNX file and data to a library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmquant.cli import options
from tvmquant.cli.output import (
    StageReporter,
    decibels,
    have_parts,
    make_table,
    megabytes,
    outputs_table,
    print_json,
    print_tables,
    print_warning,
    warn_nearest,
    warn_poor,
    warn_untuned,
)

if TYPE_CHECKING:
    from tvmquant.cli.output import TitledTable
    from tvmquant.compilation import Compilation
    from tvmquant.output_quality import OutputQuality
    from tvmquant.reconstructed import Reconstructed


def compile_model(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.onnx",
            help="The model, or a folder of it at several bit widths (trained-w8.onnx ...).",
        ),
    ],
    data: options.Data = None,
    preprocess: options.Recipe = None,
    select: options.Select = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder of the library. Default: MODEL-int8."),
    ] = None,
    target: Annotated[
        str,
        typer.Option(help="native, a processor such as haswell, or options such as -mcpu=znver4."),
    ] = "native",
    calibration_method: Annotated[
        str | None,
        typer.Option(
            metavar="M", help="mse (default), minmax, moving_average, percentile or entropy."
        ),
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(help="Of the method percentile; default 99.99.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Calibrate with at most so many items, evenly spread.")
    ] = 512,
    activation_scheme: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="asymmetric (default), symmetric, auto, or unsigned, which needs a network whose "
            "activations are never negative.",
        ),
    ] = None,
    weight_method: Annotated[
        str | None, typer.Option(metavar="M", help="mse (default) or minmax.")
    ] = None,
    bound_pairs: options.BoundPairs = None,
    latency: options.Latency = None,
    size: options.Size = None,
    bops: options.Bops = None,
    choices: options.Choices = None,
    choice: Annotated[
        str | None,
        typer.Option("--choice", metavar="C", help="Bit widths of all layers but the ends: w4a8."),
    ] = None,
    pins: options.Pins = None,
    free_ends: options.FreeEnds = False,
    sensitivity: options.SensitivityMethod = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="plan.json", help="Take the bit widths from here instead of budgets."
        ),
    ] = None,
    reconstruct: options.Reconstruct = False,
    recipe: options.Reconstruction = None,
    table: options.Table = None,
    tune: options.Tune = None,
    rpc: options.Rpc = None,
    rpc_key: options.RpcKey = None,
    threads: options.Threads = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the library.")] = 1,
    input_shape: options.InputShapes = None,
    requantize: options.Requantize = False,
    dynamic: options.Dynamic = False,
    residual_bits: options.ResidualBits = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where an operator would stay float.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a library that is already in OUT.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compile an ONNX model into an integer-only library.

    Calibrates with the images of --data (labels are not needed). A model that is quantized already
    (QDQ) needs no data: its own scales are kept; nor does --dynamic. Without a budget every layer
    gets 8 bits. With --latency, --size or --bops it measures what narrower bits cost each layer in
    accuracy and take on this machine (with --rpc: on that device), and chooses the plan of least
    cost. What was calibrated and measured is kept in OUT and used again by a later run. In the end
    the library and the float model are compared on a few of the images, output by output.
    """
    shapes = options.parse_input_shapes(input_shape)
    wishes = options.parse_wishes(latency, size, bops, choices, pins, free_ends, sensitivity)
    tune_seconds = None if tune is None else options.parse_time("--tune", tune)
    from tvmquant.compilation import compile_onnx

    out = out or Path(f"{model.absolute().stem}-int8")  # of the folder "." too
    done = compile_onnx(
        model,
        data,
        out=out,
        preprocess=preprocess,
        select=select,
        samples=samples,
        calibration_method=calibration_method,
        percentile=percentile,
        activation_scheme=activation_scheme,
        weight_method=weight_method,
        bound_pairs=bound_pairs,
        wishes=wishes,
        plan=plan,
        table=table,
        tune_seconds=tune_seconds,
        rpc=rpc,
        rpc_key=rpc_key,
        input_shapes=shapes,
        target=target,
        threads=threads,
        batch=batch,
        strict=strict,
        requantize=requantize,
        dynamic=dynamic,
        residual_bits=residual_bits,
        choice=choice,
        reconstruct=options.parse_reconstruction(reconstruct, recipe),
        force=force,
        stage=StageReporter(quiet=quiet),
    )
    summary = summarize(done, out)
    if not as_json and not quiet:
        for entry in done.manifest.float_audit:
            print_warning(f"{entry['node']} ({entry['op']}) stays float: {entry['reason']}")
        warn_untuned(table, done.untuned)
        if plan is not None and done.plan is not None and not reconstruct:
            warn_nearest(plan, done.plan)
        warn_poor(done.outputs)
    if as_json:
        print_json(summary)
    else:
        tables = [_table(summary, done.outputs)]
        if have_parts(done.outputs):
            tables.append(outputs_table(done.outputs))
        print_tables(*tables)


def summarize(done: Compilation, out: Path) -> dict[str, Any]:
    """Return what the command reports of a compilation."""
    from tvmquant.deploy.manifest import describe_pairs

    manifest = done.manifest.to_dict()
    return {
        "out": str(out),
        "model": manifest["model"]["name"],
        "target": manifest["target"]["config"],
        "threads": manifest["threads"],
        "layers": len(manifest["layers"]),
        "macs": sum(layer["macs"] for layer in manifest["layers"]),
        "float_audit": manifest["float_audit"],
        "model_bytes": manifest["model"].get("bytes"),
        "library_bytes": manifest["library"]["bytes"],
        "widths": done.manifest.widths,
        "bits": dict(Counter(bits for layer in manifest["layers"] if (bits := _bits(layer)))),
        "weight_pairs": describe_pairs(layer["weight_pairs"] for layer in manifest["layers"]),
        "untuned": list(done.untuned),
        "outputs": [output.to_dict() for output in done.outputs],
        "reconstruction": _errors(done.reconstruction),
        "plan": None if done.record is None else done.record.chosen.model_dump(),
        "reference": None if done.record is None else done.record.uniform[0].model_dump(),
        "calibration_cached": done.calibration_cached,
        "up_to_date": done.up_to_date,
        "seconds": done.seconds,
    }


def _bits(layer: dict[str, Any]) -> str:
    from tvmquant.deploy.manifest import describe_choice

    return describe_choice(layer["choice"], layer["dynamic"])


def _errors(found: Reconstructed | None) -> dict[str, dict[str, float]] | None:
    """Return the errors of outputs, in percent, by what was rounded anew."""
    if found is None:
        return None
    return {
        name: {"before": weight.before, "after": weight.after}
        for name, weight in found.weights.items()
    }


def _reconstruction_rows(errors: dict[str, dict[str, float]] | None) -> list[Any]:
    if not errors:
        return []
    before, after = (median(e[when] for e in errors.values()) for when in ("before", "after"))
    return [
        (
            "weights rounded anew",
            f"{len(errors)} layers; median error of outputs {before:.2f} to {after:.2f} %",
        )
    ]


def _plan_rows(plan: dict[str, Any] | None, reference: dict[str, Any] | None) -> list[Any]:
    if plan is None or reference is None:
        return []
    predicted, measured = plan["predicted_ms"], plan["measured_ms"]
    off = 100 * (predicted / measured - 1)
    return [
        ("latency predicted", f"{predicted:.3f} ms, {predicted / reference['predicted_ms']:.2f}x"),
        ("latency measured", f"{measured:.3f} ms (prediction off by {off:+.1f} %)"),
        (
            "weights",
            f"{plan['size_bytes'] / 1e6:.2f} MB, "
            f"{plan['size_bytes'] / reference['size_bytes']:.2f}x",
        ),
    ]


def _table(summary: dict[str, Any], outputs: Sequence[OutputQuality]) -> TitledTable:
    sqnr = "" if have_parts(outputs) else ", ".join(decibels(o.sqnr_db) for o in outputs)
    rows = [
        ("target", summary["target"]),
        ("threads", summary["threads"]),
        ("layers", f"{summary['layers']}, {len(summary['float_audit'])} operators in float"),
        ("multiply-accumulates", f"{summary['macs'] / 1e6:.1f} M"),
        ("layers by bits", ", ".join(f"{n} {bits}" for bits, n in summary["bits"].items())),
        *([("pairs of weights", summary["weight_pairs"])] if summary["weight_pairs"] else []),
        *_reconstruction_rows(summary["reconstruction"]),
        *_plan_rows(summary["plan"], summary["reference"]),
        ("model", megabytes(summary["model_bytes"])),
        ("library", megabytes(summary["library_bytes"])),
        *([("widths", ", ".join(map(str, summary["widths"])))] if summary["widths"] else []),
        *([("SQNR against float", sqnr)] if sqnr else []),
    ]
    notes = {"calibrate": " (kept from an earlier run)"} if summary["calibration_cached"] else {}
    rows += [
        (f"{stage} time", f"{seconds:.1f} s{notes.get(stage, '')}")
        for stage, seconds in summary["seconds"].items()
    ]
    state = "is up to date" if summary["up_to_date"] else "is ready"
    return make_table(f"{summary['model']}: {summary['out']} {state}", ["", ""], rows)
