"""Files that other tools quantized: does our import compute what ONNX Runtime does, and how fast.

The reference is ONNX Runtime without graph optimizations, which evaluates a file as it is written:
in float32 between quantizers. Its rounding noise decides values near ties, and in a deep network
one such decision changes many integers behind it. So the file is also cut at its quantizers and
every layer compared on ONNX Runtime's own integers, and other evaluations of the same file are
compared with the reference likewise: ONNX Runtime with its optimizations, with two threads, and
float64.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import latency as timing
from benchmarks import real
from benchmarks.attempts import attempt
from benchmarks.quantized import engines
from benchmarks.quantized.agreement import Evaluation, Values, agreement_rows, worst_sqnr_db
from benchmarks.quantized.configurations import check_configuration, quantized_file
from benchmarks.quantized.files import QuantizedFile, open_file
from benchmarks.quantized.networks import check_network, open_network
from benchmarks.real_data import Recipe
from benchmarks.real_inputs import Feeds
from benchmarks.rows import Row, RowMaker, machine_facts
from tvmquant.progress import Stage

OURS = timing.OURS
REFERENCE = "onnxruntime-unoptimized"
OPTIMIZED = "onnxruntime-int8"
THREADED = "onnxruntime-2-threads"
FLOAT64 = "float64"
OTHERS: dict[str, Callable[[Path, Sequence[Feeds]], Values]] = {
    OPTIMIZED: functools.partial(engines.run_onnxruntime, optimized=True),
    THREADED: functools.partial(engines.run_onnxruntime, threads=2),
    FLOAT64: engines.run_float64,
}


def run(
    models: Sequence[str],
    *,
    data: Path,
    stage: Stage,
    configurations: Sequence[str],
    folder: Path,
    recipes: Mapping[str, Recipe],
    items: int = 8,
    limit: int | None = None,
    peers: Sequence[str] = timing.ENGINES,
    threads: Sequence[int],
    repeats: int = 100,
    target: str = "native",
    image_size: int | None = None,
) -> list[Row]:
    """Quantize networks with other tools, import the files, and compare with ONNX Runtime.

    Parameters
    ----------
    models : sequence of str
        Trained networks, random ones, and ONNX files that the recipes know.
    data : Path
        Folder with ``models/`` and ``data/``.
    stage : callable
        Called with the name of each stage; see `tvmquant.progress.Stage`.
    configurations : sequence of str
        Of `benchmarks.quantized.configurations`.
    folder : Path
        Where quantized files are kept; those that are there are not written again.
    recipes : mapping of str to Recipe
        What files are fed with.
    items : int
        Runs that are compared.
    limit : int, optional
        Classify at most so many of the images of trained networks.
    peers : sequence of str
        Of `benchmarks.latency.ENGINES`.
    threads : sequence of int
        A process is started for each number.
    repeats : int
        Timed runs of every engine; none where 0.
    target : str
        As of `tvmquant.build`.
    image_size : int, optional
        Of random networks.

    Returns
    -------
    list of Row
        All with the ``quantization`` of the file. For each way to evaluate it: ``works`` (1, or 0
        with a ``reason``); ``equal`` (%), the last integers that are the reference's, and
        ``layers_equal``, all integers where each layer is fed with the reference's; the same
        against float64, ``float64_equal`` and ``float64_layers_equal``; each with ``numbers``,
        ``differing``, ``most_steps`` and the ``worst`` tensor; ``sqnr_db`` of the worst output. Of
        ours ``simulation_differs``, numbers of the library that are not the simulator's;
        ``float_operators`` and those the file has in integers, ``lost_operators``, with ``names``;
        ``top1`` and ``agreement`` (%) of trained networks. ``latency_ms`` and our
        ``ratio_to_best_peer`` for each number of threads.

    Raises
    ------
    DataError
        When a model or configuration is unknown, or a file is not there.
    TVMQuantError
        When an engine or a tool is not installed.
    """
    timing.check_engines(peers)
    for name in configurations:
        check_configuration(name)
    for name in models:
        check_network(name, data, recipes)
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine_facts(target)
    rows: list[Row] = []
    for name in models:
        with stage(f"{name}: data"):
            network = open_network(
                name, data=data, folder=folder, items=items, recipes=recipes, image_size=image_size
            )
        for configuration in configurations:
            facts_here = {"quantization": configuration, **facts}
            makers = [RowMaker("quantized", count, facts_here) for count in threads]
            named = f"{network.name} {configuration}"
            with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
                with stage(f"{named}: quantize"):
                    output = folder / f"{network.name}-{configuration}.onnx"
                    batches = network.runs(network.calibration)
                    path = quantized_file(configuration, network.onnx, batches, output)
                with stage(f"{named}: run as it is written"):
                    file = open_file(network, path, Path(scratch))
                case = real.Case(
                    network.name, path, path, {}, {}, network.evaluation, network.batch,
                    Path(scratch), tuple(threads), repeats, target, tuple(peers),
                )  # fmt: skip
                case.quantized.symlink_to(path.resolve())
                with stage(f"{named}: compile and compare"):
                    rows += _agreement_rows(makers[0], file, case)
                if network.task is not None and case.library(threads[0]).is_dir():
                    with stage(f"{named}: classify"):
                        rows += _top1_rows(makers[0], file, case, data, limit)
                with stage(f"{named}: measure"):
                    rows += _latency_rows(makers, file, case)
    return rows


def _agreement_rows(make: RowMaker, file: QuantizedFile, case: real.Case) -> Iterator[Row]:
    """Evaluate a file in all ways but the reference's, and compare each with that."""
    name = file.network.name
    copies = {file.shown: file.runs, file.layers: file.layer_runs}
    libraries = {count: case.library(count) for count in case.threads}
    job = engines.Job(file.onnx, libraries, file.runs, copies, case.target)
    ours, reason = attempt(engines.import_and_run, job)
    evaluations, reasons = {}, {}
    if ours is None:
        reasons[OURS] = reason
    else:
        evaluations[OURS] = Evaluation(ours.copies[file.shown], ours.copies[file.layers])
    for config, evaluate in OTHERS.items():
        try:
            evaluations[config] = Evaluation(
                *(evaluate(path, runs) for path, runs in copies.items())
            )
        except Exception as error:  # whatever onnx's reference implementation raises
            reasons[config] = str(error)
    for config, reason in reasons.items():
        yield make(name, config, "works", 0.0, "", reason=reason)
    for config, evaluation in evaluations.items():
        yield from agreement_rows(make, file, config, evaluation, evaluations.get(FLOAT64))
    if ours is None:
        return
    yield make(name, OURS, "simulation_differs", ours.differing, "")
    lost = [entry for entry in ours.float_operators if entry[1] in file.operators]
    for metric, entries in (("float_operators", ours.float_operators), ("lost_operators", lost)):
        names = ", ".join(" ".join(entry) for entry in entries)
        yield make(name, OURS, metric, len(entries), "", names=names)


def _latency_rows(
    makers: Sequence[RowMaker], file: QuantizedFile, case: real.Case
) -> Iterator[Row]:
    """Let the other engines run a file, and time those that can."""
    name = file.network.name
    works = [OURS] if case.library(case.threads[0]).is_dir() else []
    for engine in case.engines:
        if engine == "onnxruntime":
            works.append(OPTIMIZED)
            continue
        config = f"{engine}-int8"
        found, reason = attempt(real.PEERS[config], case)
        yield makers[0](name, config, "works", float(found is not None), "", reason=reason)
        if found is not None:
            works.append(config)
            runs = [
                dict(zip(file.outputs, outputs, strict=True))
                for outputs in zip(*found.outputs, strict=True)
            ]
            ratio = worst_sqnr_db(file.outputs, file.reference, runs)
            yield makers[0](name, config, "sqnr_db", ratio, "dB")
    for make in makers if case.repeats else ():
        yield from real.latency_rows(make, case, works, make.threads)


def _top1_rows(
    make: RowMaker, file: QuantizedFile, case: real.Case, data: Path, limit: int | None
) -> Iterator[Row]:
    task = file.network.task
    assert task is not None
    job = (case.library(case.threads[0]), file.onnx, data, task, limit)
    count, ours, theirs, equal = timing.in_new_process(engines.count_top1, job)
    name = file.network.name
    for config, hits in ((OURS, ours), (REFERENCE, theirs)):
        yield make(name, config, "top1", 100 * hits / count, "%", images=count)
    yield make(name, OURS, "agreement", 100 * equal / count, "%", images=count)
