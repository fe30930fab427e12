"""``python -m benchmarks``: measure what the README claims, one command per kind of figure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmquant.errors import DataError, TVMQuantError

USER_ERROR = 2
DEFAULT_DATA = Path(__file__).resolve().parents[1] / ".." / "shared"

app = typer.Typer(
    name="python -m benchmarks",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the rows here, as one JSON list."),
]
Data = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Folder with models/ and data/; see benchmarks/README.md."),
]
Target = Annotated[str, typer.Option(help="As of `tvmquant compile`.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Default: the physical cores of this machine.")
]
ImageSize = Annotated[
    int | None,
    typer.Option(min=1, help="Of random networks; default: that of the publication."),
]


Models = Annotated[str, typer.Option(help="Trained or random networks, by commas.")]
Peers = Annotated[str, typer.Option(help="Engines to compare with; may be empty.")]
Batch = Annotated[int, typer.Option(min=1, help="Images of one run.")]
NETWORKS = "resnet50,mobilenetv2,squeezenet"
ENGINES = "onnxruntime,openvino"


@app.callback()
def _commands() -> None:
    """Measure accuracy, latency, memory, plans, exactness, kernels; rows go to --json FILE."""


@app.command()
def accuracy(
    data: Data = DEFAULT_DATA,
    models: Annotated[str, typer.Option(help="Some of squeezenet,resnet20.")] = (
        "squeezenet,resnet20"
    ),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate at most so many images of each.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Calibration method.")] = None,
    percentile: Annotated[float | None, typer.Option(help="Of --method percentile.")] = None,
    scheme: Annotated[str | None, typer.Option(help="Activation scheme.")] = None,
    weight_method: Annotated[str | None, typer.Option(help="mse or minmax.")] = None,
    choices: Annotated[
        str, typer.Option(help="Bit widths of all layers but the ends, such as w8a8,w6a6.")
    ] = "w8a8",
    target: Target = "native",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Top-1, agreement, SQNR and size of deployed libraries, calibrated without labels."""
    calibration = _given(method=method, percentile=percentile, activation_scheme=scheme)

    def measure() -> list[Any]:
        from benchmarks import accuracy as benchmark
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            data,
            stage=StageReporter(),
            models=_names(models),
            limit=limit,
            calibration_options=calibration,
            quantize_options=_given(weight_method=weight_method),
            choices=_names(choices),
            target=target,
            threads=threads or _physical_cores(),
        )

    _report(json, measure)


@app.command()
def latency(
    models: Models = NETWORKS,
    peers: Peers = ENGINES,
    threads: Annotated[
        str | None, typer.Option(help="Such as 1,2. Default: the physical cores.")
    ] = None,
    batch: Batch = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each engine.")] = 100,
    with_float: Annotated[
        bool, typer.Option("--float", help="Also tvmquant's float library.")
    ] = False,
    image_size: ImageSize = None,
    target: Target = "native",
    data: Data = DEFAULT_DATA,
    json: Json = None,
) -> None:
    """Latency of networks in tvmquant and in other engines, by turns in one process."""

    def measure() -> list[Any]:
        from benchmarks import latency as benchmark
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            _names(models),
            data=data,
            stage=StageReporter(),
            peers=_names(peers),
            threads=[_physical_cores()] if threads is None else _counts(threads),
            batch=batch,
            repeats=repeats,
            with_float=with_float,
            target=target,
            image_size=image_size,
        )

    _report(json, measure, columns=["peer"], last=["min_ms", "ratio_of_min"])


@app.command()
def kernels(
    threads: Threads = None,
    batch: Batch = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each layer.")] = 100,
    binary: Annotated[
        bool, typer.Option("--binary", help="Layers of binary networks beside INT8 instead.")
    ] = False,
    target: Target = "native",
    json: Json = None,
) -> None:
    """GMAC/s of each ResNet-50 layer against the machine's multiply peak."""

    def measure() -> list[Any]:
        from benchmarks import binary_kernels
        from benchmarks import kernels as benchmark
        from tvmquant.cli.output import StageReporter

        with StageReporter()("measure") as progress:
            return (binary_kernels if binary else benchmark).run(
                threads=threads or _physical_cores(),
                target=target,
                batch=batch,
                repeats=repeats,
                progress=progress,
            )

    _report(json, measure, columns=["layer"])


@app.command()
def profile(
    models: Models = NETWORKS,
    threads: Annotated[
        str | None, typer.Option(help="Such as 1,2. Default: the physical cores.")
    ] = None,
    batch: Batch = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each network.")] = 50,
    image_size: ImageSize = None,
    target: Target = "native",
    data: Data = DEFAULT_DATA,
    before: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Show the times of an earlier profile (--json) too."),
    ] = None,
    json: Json = None,
) -> None:
    """Time of every kernel call in a network, and what remains of it at the machine's limit."""

    def measure() -> list[Any]:
        from benchmarks import profile as benchmark
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            _names(models),
            data=data,
            stage=StageReporter(),
            threads=[_physical_cores()] if threads is None else _counts(threads),
            batch=batch,
            repeats=repeats,
            target=target,
            image_size=image_size,
            before=before,
        )

    shown = ["share", "limit_us", "fraction_of_limit", "bound", "before_us"]
    _report(json, measure, columns=["layer"], last=shown)


@app.command()
def real(
    models: Annotated[str, typer.Option(help="ONNX files, by commas.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="D", help="Of all models, as of `tvmquant compile`, or synthetic."),
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="P", help="Recipe for the images of --data.")
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N,C,H,W", help="Of an input that models leave open."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Data by names of files. Default: benchmarks/real.toml."),
    ] = None,
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the table's files of data lie.")
    ] = DEFAULT_DATA / "data",
    items: Annotated[int, typer.Option(min=1, help="Inputs; a third is evaluated.")] = 96,
    peers: Peers = ENGINES,
    threads: Annotated[str, typer.Option(help="Such as 1,2.")] = "1,2",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each engine.")] = 100,
    target: Target = "native",
    json: Json = None,
) -> None:
    """Your networks: whether they compile, SQNR, agreement and latency, beside other engines."""
    from benchmarks import real as benchmark
    from benchmarks.real_data import DEFAULT_TABLE, Recipe, read_table
    from benchmarks.rows import check_destination, write_rows
    from tvmquant.cli.output import StageReporter

    check_destination(json)
    shapes = " ".join(input_shape or []) or None
    given = None if data is None else Recipe(data, preprocess, shapes)
    rows = benchmark.run(
        [Path(name) for name in _names(models)],
        stage=StageReporter(),
        recipes=read_table(table or DEFAULT_TABLE),
        default=given,
        folder=folder,
        items=items,
        peers=_names(peers),
        threads=_counts(threads),
        repeats=repeats,
        target=target,
    )
    if json is not None:
        write_rows(json, rows)
    benchmark.print_summary(rows)


@app.command()
def quantized(
    models: Annotated[
        str, typer.Option(help="Trained or random networks, or float ONNX files, by commas.")
    ] = "squeezenet,resnet20,resnet18,resnet50,mobilenetv2,efficientnet-lite0,"
    "mobilenetv3-small,densenet121,unet",
    configs: Annotated[
        str, typer.Option(help="How files are quantized, or as-is for files that are already.")
    ] = "s8s8,s8s8-asymmetric,u8s8-channel,u8u8,qoperator,nncf,nncf-mixed",
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Where quantized files are kept for later runs.")
    ] = Path("build/quantized"),
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Data by names of files. Default: benchmarks/real.toml."),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Runs that are compared.")] = 8,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Classify at most so many images.")
    ] = None,
    peers: Peers = ENGINES,
    threads: Annotated[str, typer.Option(help="Such as 1,2.")] = "1,2",
    repeats: Annotated[int, typer.Option(min=0, help="Timed runs of each engine, or 0.")] = 100,
    image_size: ImageSize = None,
    target: Target = "native",
    data: Data = DEFAULT_DATA,
    json: Json = None,
) -> None:
    """Files that other tools quantized: integers equal to ONNX Runtime's, top-1, and latency."""
    from benchmarks import quantized as benchmark
    from benchmarks.quantized.summary import print_summary
    from benchmarks.real_data import DEFAULT_TABLE, read_table
    from benchmarks.rows import check_destination, write_rows
    from tvmquant.cli.output import StageReporter

    check_destination(json)
    rows = benchmark.run(
        _names(models),
        data=data,
        stage=StageReporter(),
        configurations=_names(configs),
        folder=folder,
        recipes=read_table(table or DEFAULT_TABLE),
        items=items,
        limit=limit,
        peers=_names(peers),
        threads=_counts(threads),
        repeats=repeats,
        target=target,
        image_size=image_size,
    )
    if json is not None:
        write_rows(json, rows)
    print_summary(rows)


@app.command()
def exactness(
    models: Models = "squeezenet,resnet20,resnet18,mobilenetv2,efficientnet-lite0,"
    "mobilenetv3-small,unet,densenet121",
    choices: Annotated[
        str, typer.Option(help="Bit widths of all layers but the ends, such as w8a8,w4a4.")
    ] = "w8a8,w4a4",
    threads: Threads = None,
    image_size: ImageSize = None,
    target: Target = "native",
    data: Data = DEFAULT_DATA,
    json: Json = None,
) -> None:
    """Numbers that differ between the exact twin, the numpy oracle and the library."""

    def measure() -> list[Any]:
        from benchmarks import exactness as benchmark
        from tvmquant.bit_choice import BitChoice
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            _names(models),
            data=data,
            stage=StageReporter(),
            choices=[BitChoice.parse(name) for name in _names(choices)],
            threads=threads or _physical_cores(),
            target=target,
            image_size=image_size,
        )

    _report(json, measure)


@app.command()
def memory(
    models: Models = NETWORKS,
    peers: Peers = ENGINES,
    threads: Threads = None,
    batch: Batch = 1,
    image_size: ImageSize = None,
    target: Target = "native",
    data: Data = DEFAULT_DATA,
    json: Json = None,
) -> None:
    """Peak memory of loading and running INT8 networks in tvmquant and in other engines."""

    def measure() -> list[Any]:
        from benchmarks import memory as benchmark
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            _names(models),
            data=data,
            stage=StageReporter(),
            peers=_names(peers),
            threads=threads or _physical_cores(),
            batch=batch,
            target=target,
            image_size=image_size,
        )

    _report(json, measure)


@app.command()
def allocation(
    models: Models = "squeezenet,resnet20,resnet50",
    data: Data = DEFAULT_DATA,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate at most so many images of each.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each library.")] = 60,
    image_size: ImageSize = None,
    target: Target = "native",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Accuracy, latency and predicted latency of plans of bit widths, each of one library."""

    def measure() -> list[Any]:
        from benchmarks import allocation as benchmark
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            _names(models),
            data=data,
            stage=StageReporter(),
            target=target,
            threads=threads or _physical_cores(),
            repeats=repeats,
            limit=limit,
            image_size=image_size,
        )

    _report(json, measure, columns=["layer"])


@app.command()
def instructions(
    processors: Annotated[
        str, typer.Option(metavar="A,B", help="Emulated processors of AArch64.")
    ] = "cortex-a72,neoverse-n1,max",
    peers: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Python and wheels for AArch64: see the module."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="A,B", help="Some layers, by their names in the table.")
    ] = None,
    json: Json = None,
) -> None:
    """Count what ResNet-50's convolutions execute on emulated AArch64, beside peers."""

    def measure() -> list[Any]:
        from benchmarks import instructions as benchmark
        from tvmquant.cli.output import StageReporter

        with StageReporter()("instructions") as progress:
            return benchmark.run(
                processors=_names(processors), peers=peers,
                layers=_names(layers) if layers else None, progress=progress,
            )  # fmt: skip

    _report(json, measure, columns=["cpu", "layer"])


@app.command()
def tuning(
    model: Annotated[str, typer.Option(help="Random network to tune.")] = "resnet50",
    time: Annotated[str, typer.Option(metavar="T", help="Budget, such as 90s or 10m.")] = "13m",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each library.")] = 60,
    image_size: ImageSize = None,
    target: Target = "native",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Measure what tuning gains on a network, how long it takes, and how well it repeats."""

    def measure() -> list[Any]:
        from benchmarks import tuning as benchmark
        from tvmquant.cli.options import parse_time
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            model,
            stage=StageReporter(),
            seconds=parse_time("--time", time),
            repeats=repeats,
            image_size=image_size,
            target=target,
            threads=threads or _physical_cores(),
        )

    _report(json, measure)


@app.command()
def training(
    data: Data = DEFAULT_DATA,
    method: Annotated[str, typer.Option(help="One of benchmarks.training.METHODS.")] = "w4a4",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="As of `tvmquant train`."),
    ] = None,
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Of checkpoints, from which trainings go on.")
    ] = Path("build/trained"),
    target: Target = "native",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Train ResNet-20 at few bits on CIFAR-10: top-1 of the library on all test images."""

    def measure() -> list[Any]:
        from benchmarks import training as benchmark
        from benchmarks.training.common import Setting
        from tvmquant.cli.output import StageReporter
        from tvmquant.cli.train import parse_change

        setting = Setting(
            data, StageReporter(), folder, dict(map(parse_change, changes or [])), target,
            threads or _physical_cores(),
        )  # fmt: skip
        return benchmark.run(method, setting)

    _report(json, measure)


@app.command("binary_training")
def binary_training(
    data: Data = DEFAULT_DATA,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 50,000 images.")] = 20,
    checkpoint: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Written after each epoch; training goes on from it."),
    ] = Path("build/reactnet20-cifar-wide.pt"),
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled/--eager",
            help="Let torch compile the network (needs g++) and compute in bfloat16.",
        ),
    ] = False,
    target: Target = "native",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Train a ReActNet on CIFAR-10, deploy it, compare all logits with the exact twin's."""

    def measure() -> list[Any]:
        from benchmarks import binary_training as benchmark
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            data,
            stage=StageReporter(),
            epochs=epochs,
            checkpoint=checkpoint,
            compiled=compiled,
            target=target,
            threads=threads or _physical_cores(),
        )

    _report(json, measure)


@app.command("compile_time")
def compile_time(
    model: Annotated[str, typer.Option(help="Random network to compile.")] = "resnet50",
    repeats: Annotated[int, typer.Option(min=1, help="Processes; the median counts.")] = 3,
    image_size: ImageSize = None,
    target: Target = "native",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Seconds to compile without tuning, to import tvmquant, and to print its help."""

    def measure() -> list[Any]:
        from benchmarks import compile_time as benchmark
        from tvmquant.cli.output import StageReporter

        return benchmark.run(
            stage=StageReporter(),
            threads=threads or _physical_cores(),
            model=model,
            target=target,
            repeats=repeats,
            image_size=image_size,
        )

    _report(json, measure)


@app.command()
def conformance(
    only: Annotated[
        str, typer.Option(metavar="REGEX", help="Tests whose names match it somewhere.")
    ] = "",
    executor: Annotated[
        str, typer.Option(help="simulator, twin, or library (built for each test: slow).")
    ] = "simulator",
    json: Json = None,
) -> None:
    """Node tests of ONNX: how many are right, refused and why, or wrong (exit code 1)."""
    from benchmarks import conformance as benchmark
    from benchmarks.rows import check_destination, write_rows
    from tvmquant.cli.output import StageReporter

    check_destination(json)
    rows = benchmark.run(stage=StageReporter(), only=only, executor=executor)
    if json is not None:
        write_rows(json, rows)
    benchmark.print_summary(rows)
    if benchmark.failed(rows):
        raise typer.Exit(1)


def _report(json: Path | None, measure: Callable[[], list[Any]], **table: Any) -> None:
    from benchmarks.rows import check_destination, print_rows, write_rows

    check_destination(json)
    rows = measure()
    if json is not None:
        write_rows(json, rows)
    print_rows(rows, **table)


def _physical_cores() -> int:
    # before a library is loaded: TVM's thread pool narrows the processors of this thread
    from tvmquant.devices.host import physical_cores

    return physical_cores()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _counts(text: str) -> list[int]:
    names = _names(text)
    if not names or not all(name.isdecimal() and int(name) > 0 for name in names):
        raise DataError(f"--threads {text!r}: expected numbers of threads, such as 1,2")
    return [int(name) for name in names]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def main() -> None:
    """Run a command; a mistake of the user ends it with one message and exit code 2."""
    from tvmquant.cli.output import print_error

    # PyTorch's threads would otherwise spin while TVM's compute, and both would be slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (TVMQuantError, OSError) as error:
        print_error(str(error))
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
