"""Latency of whole networks: tvmquant's libraries and other engines by turns, in one process."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks import models as networks
from benchmarks import peers as engines
from benchmarks.accuracy import TASKS, require_file
from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.benchmark import Latency, measure_interleaved
from tvmquant.cli.output import print_warning
from tvmquant.deploy.manifest import LayerInfo
from tvmquant.errors import DataError, TargetError
from tvmquant.progress import Stage

if TYPE_CHECKING:
    from tvmquant.graph import Graph

Argument = TypeVar("Argument")
Result = TypeVar("Result")

ENGINES = ("onnxruntime", "openvino")
OURS = "tvmquant-int8"
# images that every engine's quantization sees: enough for ranges, which latency does not depend on
CALIBRATION_IMAGES = 8
# timed runs of an engine in a row, after running it for so long untimed: the threads of the engine
# before it spin for a while when they are done, and would compute on the same cores
RUNS_IN_A_ROW = 4
SETTLE_SECONDS = 0.03
# after which the threads of all engines sleep
REST_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes
    ----------
    model : str
        Name in the rows.
    onnx : Path
        The float model.
    images : array of float32, (n, C, H, W)
        To calibrate with; the first `batch` ones, repeated if needed, are run.
    batch, threads, repeats : int
    engines : tuple of str
        Of `ENGINES`.
    with_float : bool
        Also measure tvmquant's float library.
    target : str
    """

    model: str
    onnx: Path
    images: NDArray[np.float32]
    batch: int
    threads: int
    repeats: int
    engines: tuple[str, ...]
    with_float: bool
    target: str


def run(
    models: Sequence[str],
    *,
    data: Path,
    stage: Stage,
    peers: Sequence[str] = ENGINES,
    threads: Sequence[int],
    batch: int = 1,
    repeats: int = 100,
    with_float: bool = False,
    target: str = "native",
    image_size: int | None = None,
) -> list[Row]:
    """Measure networks in tvmquant and in other engines.

    Parameters
    ----------
    models : sequence of str
        Trained ones of `benchmarks.accuracy.TASKS`, random ones of `benchmarks.models`.
    data : Path
        Folder of the trained models.
    stage : callable
        Called with the name of each stage; see `tvmquant.progress.Stage`.
    peers : sequence of str
        Of `ENGINES`.
    threads : sequence of int
        A process is started for each number and model: a process has one thread pool.
    batch : int
        Images of a run.
    repeats : int
        Timed runs of every engine.
    with_float : bool
        Also measure tvmquant's float library.
    target : str
        As of `tvmquant.build`.
    image_size : int, optional
        Height and width of images of random networks.

    Returns
    -------
    list of Row
        ``latency_ms``, the median, of ``tvmquant-int8`` and of each engine's ``-int8`` and
        ``-float``; ``limit_ms``, what the network's multiplications take at the multiply peak of
        this run; ``ratio_to_peer`` (our time over the peer's) for each INT8 peer, and
        ``ratio_to_best_peer``.

    Raises
    ------
    DataError
        When a model or peer is unknown, or a file is not there.
    TVMQuantError
        When an engine is not installed.
    """
    check_engines(peers)
    for name in models:
        check_model(name, data)
    facts = machine_facts(target)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        for name in models:
            with stage(f"{name}: prepare"):
                onnx, images = prepare(name, data, Path(scratch), image_size)
            for count in threads:
                case = Case(
                    name, onnx, images, batch, count, repeats, tuple(peers), with_float, target
                )
                with stage(f"{name}: build and measure, {count} threads"):
                    try:
                        latencies, limit, pool = in_new_process(measure, case)
                    except concurrent.futures.BrokenExecutor:
                        case = dataclasses.replace(case, engines=_alive(case))
                        latencies, limit, pool = in_new_process(measure, case)
                if pool != count:
                    print_warning(
                        f"{name}: tvmquant computed with {pool} threads, not with {count} like its "
                        f"peers; set TVM_NUM_THREADS={count}"
                    )
                facts_here = {"tvm_threads": pool, "batch": batch, **facts}
                rows += _rows(RowMaker("latency", count, facts_here), name, latencies, limit)
    return rows


def in_new_process(function: Callable[[Argument], Result], argument: Argument) -> Result:
    """Return what a function returns in a fresh process, or raise what it raises there."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, argument).result()


def _alive(case: Case) -> tuple[str, ...]:
    """Return the engines that do not end their process with a model, and name the others."""
    alive = []
    for engine in case.engines:
        try:
            in_new_process(_try_engine, dataclasses.replace(case, engines=(engine,)))
            alive.append(engine)
        except concurrent.futures.BrokenExecutor:
            print_warning(f"{case.model}: {engine} ends its process with this model; left out")
    return tuple(alive)


def _try_engine(case: Case) -> None:
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        for peer in _peers(case, scratch).values():
            peer.run(_image(case))


def _image(case: Case) -> NDArray[np.float32]:
    return np.resize(case.images, (case.batch, *case.images.shape[1:]))


def _peers(case: Case, folder: str) -> dict[str, engines.Peer]:
    if not case.engines:
        return {}
    os.environ.update(restrict_openvino(case.target))
    return engines.build_peers(
        case.onnx,
        list(case.images[:, None]),
        _image(case).shape,
        folder,
        engines=case.engines,
        threads=case.threads,
    )


def measure(case: Case) -> tuple[dict[str, Latency], float, int]:
    """Build a model for every engine, run them by turns, and count TVM's threads.

    Returns
    -------
    dict
        Name of the engine and precision to latency.
    float
        Seconds that the network's multiplications take at this machine's peak.
    int
        Threads that TVM really computed with, whatever the library was asked for.
    """
    import tvm

    import tvmquant

    image = _image(case)
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        rivals = _peers(case, scratch)
        runners = {name: started(peer.run, image) for name, peer in rivals.items()}
        graph = tvmquant.load_onnx(case.onnx)
        found = tvmquant.calibrate(graph, case.images)
        graphs = {OURS: tvmquant.quantize(graph, found, **target_rounding(case.target))}
        if case.with_float:
            graphs["tvmquant-float"] = graph
        libraries, layers = {}, {}
        for name, source in graphs.items():
            out = Path(scratch, name)
            manifest = tvmquant.build(
                source, target=case.target, out=out, threads=case.threads, batch=case.batch
            )
            layers[name] = manifest.layers
            # every engine chooses its processors when its threads start: let all of them be free
            allowed = os.sched_getaffinity(0)
            libraries[name] = tvmquant.load(out, threads=case.threads).bind(image)
            os.sched_setaffinity(0, allowed)
        pool = int(tvm.get_global_func("runtime.NumThreads")())
        latencies = by_turns({**libraries, **runners}, case.repeats)
        return latencies, _limit(case, layers[OURS], graphs[OURS]), pool


def _limit(case: Case, layers: Sequence[LayerInfo], graph: Graph) -> float:
    """Return the seconds of a network's multiplications at the peak, or nan without a known one."""
    from benchmarks import kernels
    from benchmarks.peaks import network_peaks

    time.sleep(REST_SECONDS)
    try:
        peaks = network_peaks(case.target, case.threads)
    except TargetError:
        return float("nan")
    useful = kernels.useful_macs(graph.module, case.batch)
    return sum(useful.get(i.id, i.macs) / peaks.of(i) for i in layers)


def restrict_openvino(target: str) -> dict[str, str]:
    """Return the environment that keeps OpenVINO to a target's instructions.

    ONNX Runtime has no such switch.
    """
    from tvmquant.schedules.isa import has_feature
    from tvmquant.target import parse_target

    parsed = parse_target(target)
    if has_feature(parsed, "avx512f"):
        return {}
    vnni = has_feature(parsed, "avxvnni")
    return {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI" if vnni else "AVX2"}


def started(run: Callable[[Argument], object], inputs: Argument) -> Callable[[], object]:
    """Return a function that runs an engine on inputs, once it has started its threads."""
    run(inputs)
    return lambda: run(inputs)


def by_turns(runners: dict[str, Callable[[], object]], repeats: int) -> dict[str, Latency]:
    """Time functions by turns, a few runs each, `repeats` in all."""
    turns: dict[str, Callable[[], object]] = {}
    for name, runner in runners.items():
        turns[f"{name}/settle"] = _settling(runner)
        turns.update({f"{name}/{index}": runner for index in range(RUNS_IN_A_ROW)})
    rounds = -(-repeats // RUNS_IN_A_ROW)
    seconds = measure_interleaved(turns, repeats=rounds, warmup=1)
    return {
        name: Latency(
            tuple(s for index in range(RUNS_IN_A_ROW) for s in seconds[f"{name}/{index}"])
        )
        for name in runners
    }


def _settling(runner: Callable[[], object]) -> Callable[[], None]:
    def settle() -> None:
        end = time.perf_counter() + SETTLE_SECONDS
        runner()
        while time.perf_counter() < end:
            runner()

    return settle


def _rows(make: RowMaker, model: str, latencies: dict[str, Latency], limit: float) -> Iterator[Row]:
    for name, latency in latencies.items():
        extra = {"min_ms": latency.min_ms, "p90_ms": latency.p90_ms, "runs": len(latency.seconds)}
        yield make(model, name, "latency_ms", latency.median_ms, "ms", **extra)
    yield make(model, OURS, "limit_ms", 1e3 * limit, "ms")
    ours = latencies[OURS]
    rivals = {name: found for name, found in latencies.items() if name != OURS}
    integer = {name: found for name, found in rivals.items() if name.endswith("-int8")}

    def ratio(metric: str, peer: str) -> Row:
        value = ours.median_ms / integer[peer].median_ms
        # the two differ where something else ran on the cores
        least = ours.min_ms / integer[peer].min_ms
        return make(model, OURS, metric, value, "x", peer=peer, ratio_of_min=least)

    for name in integer:
        yield ratio("ratio_to_peer", name)
    if integer:
        best = min(integer, key=lambda name: integer[name].median_ms)
        yield ratio("ratio_to_best_peer", best)


def check_engines(names: Sequence[str]) -> None:
    """Raise `DataError` where one is not of `ENGINES`."""
    for name in names:
        if name not in ENGINES:
            raise DataError(f"--peers: {name!r} is unknown; expected some of {', '.join(ENGINES)}")


def check_model(name: str, data: Path) -> None:
    """Raise `DataError` where `prepare` could not make the model."""
    if name in TASKS:
        require_file(data / "models" / TASKS[name].model)
    elif name not in networks.names():
        known = ", ".join((*TASKS, *networks.names()))
        raise DataError(f"--models: {name!r} is unknown; expected some of {known}")


def prepare(
    name: str, data: Path, folder: Path, image_size: int | None
) -> tuple[Path, NDArray[np.float32]]:
    """Return the ONNX file of a model, exported if it is a random one, and synthetic images."""
    if name in TASKS:
        onnx = data / "models" / TASKS[name].model
        shape = _trained_shape(onnx)
        # of the magnitude that each was trained on; latency does not depend on it
        scale = 64.0 if TASKS[name].preprocess == "squeezenet-caffe" else 1.0
    else:
        onnx = networks.export(name, folder / f"{name}.onnx", image_size=image_size)
        shape, scale = networks.input_shape(name, image_size), 1.0
    images = networks.synthetic_images(CALIBRATION_IMAGES, shape, seed=0)
    return onnx, (images * np.float32(scale)).astype(np.float32)


def _trained_shape(path: Path) -> tuple[int, int, int]:
    import onnx

    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    channels, height, width = (int(dim.dim_value) for dim in dims[1:])
    return channels, height, width
