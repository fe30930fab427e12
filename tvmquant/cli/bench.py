"""``tvmquant bench``: latency of a library, layer by layer, and against the float model."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmquant.cli import options
from tvmquant.cli.float_model import load_float_model
from tvmquant.cli.output import StageReporter, make_table, print_json, print_tables

if TYPE_CHECKING:
    from tvmquant.benchmark import Latency
    from tvmquant.cli.output import TitledTable
    from tvmquant.deploy.loader import Model
    from tvmquant.devices.device import Device


def bench(
    library: options.Library,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each network.")] = 100,
    rpc: options.Rpc = None,
    rpc_key: options.RpcKey = None,
    width: options.Width = None,
    threads: options.Threads = None,
    against_float: Annotated[
        bool,
        typer.Option(
            "--against-float",
            help="Also time the float model, compiled by tvmquant for the same target.",
        ),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="MODEL.onnx", help="Default: the one OUT was compiled from."
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also time every layer by itself.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the latency of a library on random inputs."""
    from tvmquant.benchmark import compare, random_inputs, runner
    from tvmquant.deploy.loader import load
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.deploy.remote import open_device
    from tvmquant.devices.tracker import Tracker
    from tvmquant.machine import Machine

    stage = StageReporter(quiet=quiet)
    tracker = Tracker.of(rpc, rpc_key)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="tvmquant-"))
        device = None
        if tracker is not None:
            built = Manifest.load(library)
            machine = Machine.of(built.target["config"], threads or built.threads)
            device = stack.enter_context(open_device(tracker, machine))
        deployed = load(library, threads=threads, device=device, width=width)
        inputs = random_inputs(deployed.inputs)
        networks = {"library": runner(deployed, inputs)}
        if against_float:
            with stage("build the float model"):
                rival = _build_float(deployed, Path(scratch) / "float", model, device)
            networks["float"] = runner(rival, inputs)
        with stage("measure") as progress:
            latencies = compare(networks, repeats=repeats, progress=progress)
        layers = []
        if profile:
            with stage("profile"):
                layers = deployed.profile(*inputs, repeats=repeats)
    report: dict[str, Any] = {
        "library": str(library),
        "target": deployed.manifest.target["config"],
        "threads": deployed.threads,
        "device": deployed.device.name,
        "latency": {name: latency.to_dict() for name, latency in latencies.items()},
    }
    if against_float:
        report["speedup"] = latencies["float"].median_ms / latencies["library"].median_ms
    if profile:
        report["layers"] = [{"id": i.id, "kernel": i.kernel, "ms": s * 1e3} for i, s in layers]
    if as_json:
        print_json(report)
        return
    title = f"{library}, {deployed.threads} threads, {repeats} runs"
    print_tables(latency_table(latencies, title))
    if profile:
        print_tables(_profile_table(layers))


def _build_float(deployed: Model, out: Path, path: Path | None, device: Device | None) -> Model:
    """Compile the float model for the library's target and load it."""
    from tvmquant.deploy.build import build
    from tvmquant.deploy.loader import load

    manifest = deployed.manifest
    build(
        load_float_model(manifest, path),
        target=manifest.target["config"],
        out=out,
        threads=deployed.threads,
        batch=deployed.inputs[0].shape[0],
    )
    return load(out, threads=deployed.threads, device=device)


def latency_table(latencies: dict[str, Latency], title: str) -> TitledTable:
    """Return the table of latencies, each with its ratio to the library's."""
    fastest = latencies["library"].median_ms
    rows = [
        (
            name,
            f"{latency.median_ms:.3f} ms",
            f"{latency.min_ms:.3f} ms",
            f"{latency.p90_ms:.3f} ms",
            f"{latency.median_ms / fastest:.2f}x",
        )
        for name, latency in latencies.items()
    ]
    return make_table(title, ["", "median>", "min>", "p90>", "time ratio>"], rows)


def _profile_table(layers: list[Any]) -> TitledTable:
    total = sum(seconds for _, seconds in layers)
    rows = [
        (
            info.id,
            info.op,
            info.kernel,
            f"{seconds * 1e6:.1f} us",
            f"{100 * seconds / total:.1f} %",
            f"{info.macs / seconds / 1e9:.0f}" if info.macs and seconds else "",
        )
        for info, seconds in layers
    ]
    columns = ["layer", "op", "kernel", "time>", "share>", "GMAC/s>"]
    return make_table(f"layers, {total * 1e3:.3f} ms in all", columns, rows)
