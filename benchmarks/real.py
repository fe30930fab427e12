"""Networks of the user: whether they compile, how near they stay to float, and how fast they are.

Every engine computes in processes of its own, so that what one of them cannot do, even a crash, is
a row beside the others.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import latency as timing
from benchmarks.attempts import attempt
from benchmarks.noise import sqnr_db
from benchmarks.real_data import Recipe, find_recipe
from benchmarks.real_inputs import Feeds, Shape, prepare
from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.errors import DataError
from tvmquant.progress import Stage

if TYPE_CHECKING:
    from tvmquant.benchmark import Latency

OURS = timing.OURS
REFERENCE = "onnxruntime-float"


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, what it is fed with, and where its results go.

    Attributes
    ----------
    model : str
        Name in the rows.
    onnx : Path
        The file as the user has it.
    shaped : Path
        The same with the input shapes that were asked for, which other engines read.
    input_shapes : mapping
        As of `tvmquant.load_onnx`; empty where the file says them all.
    calibration, evaluation : dict of str to array
        Items of every input, a multiple of `batch`.
    batch : int
        Items of a run: what the model fixes, or 1.
    folder : Path
        For libraries, quantized files and results.
    threads : tuple of int
    repeats : int
    target : str
    engines : tuple of str
    """

    model: str
    onnx: Path
    shaped: Path
    input_shapes: Mapping[str, Shape]
    calibration: Feeds
    evaluation: Feeds
    batch: int
    folder: Path
    threads: tuple[int, ...]
    repeats: int
    target: str
    engines: tuple[str, ...]

    @property
    def first(self) -> Feeds:
        """The first batch that is evaluated."""
        return {name: array[: self.batch] for name, array in self.evaluation.items()}

    @property
    def quantized(self) -> Path:
        """The file of ONNX Runtime's quantization, which OpenVINO reads too."""
        return self.folder / "int8.onnx"

    def library(self, threads: int) -> Path:
        """Return the folder of our library for so many threads."""
        return self.folder / f"library{threads}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an engine did with a network.

    Attributes
    ----------
    reason : str
        Why there is no result; empty where there is one.
    outputs : list of array
        Of all items.
    float_operators : list of str, optional
        Operators that stayed float, as ``type node``; None where not known.
    """

    reason: str = ""
    outputs: list[NDArray[Any]] = dataclasses.field(default_factory=list)
    float_operators: list[str] | None = None


def run(
    models: Sequence[Path],
    *,
    stage: Stage,
    recipes: Mapping[str, Recipe],
    default: Recipe | None = None,
    folder: Path,
    items: int = 96,
    peers: Sequence[str] = timing.ENGINES,
    threads: Sequence[int],
    repeats: int = 100,
    target: str = "native",
) -> list[Row]:
    """Compile networks, compare their results with float, and time them beside other engines.

    Parameters
    ----------
    models : sequence of Path
        ONNX files.
    stage : callable
        Called with the name of each stage; see `tvmquant.progress.Stage`.
    recipes : mapping of str to Recipe
        By patterns of the files' names; see `benchmarks.real_data`.
    default : Recipe, optional
        Of all models, instead of those.
    folder : Path
        Where files of data are looked for.
    items : int
        Inputs at most; two thirds calibrate, the others are evaluated.
    peers : sequence of str
        Of `benchmarks.latency.ENGINES`.
    threads : sequence of int
        A process is started for each number.
    repeats : int
        Timed runs of every engine.
    target : str
        As of `tvmquant.build`.

    Returns
    -------
    list of Row
        For every engine and precision, of which `OURS` is the first: ``works`` (1, or 0 with a
        ``reason``); of ours ``float_operators`` (with their ``names``); ``sqnr_db`` of every
        ``output`` against ONNX Runtime's unoptimized float and ``worst_sqnr_db``; ``agreement``
        of the largest value along axis 1 of the first output; ``latency_ms`` for each number of
        threads; of ours ``ratio_to_best_peer``, our time over the faster INT8 engine's, and
        ``gain_over_best_peer_db``, our worst SQNR over the better one's.

    Raises
    ------
    DataError
        When a file is not there, or nothing says what to feed a model with.
    TVMQuantError
        When an engine is not installed.
    """
    timing.check_engines(peers)
    chosen = {path: default or find_recipe(recipes, path) for path in models}
    for path, recipe in chosen.items():
        if not path.is_file():
            raise DataError(f"--models: {path} is not there")
        if recipe is None:
            raise DataError(
                f"nothing says what to feed {path.name} with; pass --data FILE, or --table with a "
                f'section ["{path.name}"] (see benchmarks/real.toml)'
            )
    facts = machine_facts(target)
    rows: list[Row] = []
    for path, recipe in chosen.items():
        assert recipe is not None
        name = path.stem
        with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
            with stage(f"{name}: data"):
                case = Case(
                    name, path, *prepare(path, recipe, Path(scratch), folder, items),
                    Path(scratch), tuple(threads), repeats, target, tuple(peers),
                )  # fmt: skip
            with stage(f"{name}: compile and compare"):
                outcomes = _outcomes(case)
            make = RowMaker("real", threads[0], facts)
            rows += _accuracy_rows(make, case, outcomes)
            works = [config for config, found in outcomes.items() if not found.reason]
            for count in threads:
                make = RowMaker("real", count, facts)
                with stage(f"{name}: measure, {count} threads"):
                    rows += latency_rows(make, case, works, count)
    return rows


def _outcomes(case: Case) -> dict[str, Outcome]:
    """Let every engine compute, float and INT8, each in a process of its own."""
    found = {OURS: _tried(compile_ours, case), REFERENCE: _tried(run_reference, case)}
    for engine in case.engines:
        for precision in ("float", "int8"):
            name = f"{engine}-{precision}"
            if name != REFERENCE:
                found[name] = _tried(PEERS[name], case)
    return found


def _tried(function: Callable[[Case], Outcome], case: Case) -> Outcome:
    found, reason = attempt(function, case)
    return found or Outcome(reason)


def compile_ours(case: Case) -> Outcome:
    """Quantize and compile for every number of threads, and run the first library on the items."""
    import tvmquant
    from tvmquant.passes.verify_integer_only import float_audit

    graph = tvmquant.load_onnx(case.onnx, input_shapes=case.input_shapes or None)
    names = [name for name, _, _ in graph.inputs]
    items = {name: _as_float32(case.calibration[name]) for name in names}
    data = items[names[0]] if len(names) == 1 else items
    calibration = tvmquant.calibrate(graph, data)
    quantized = tvmquant.quantize(graph, calibration, **target_rounding(case.target))
    for count in case.threads:
        tvmquant.build(
            quantized, target=case.target, out=case.library(count), threads=count, batch=case.batch
        )
    model = tvmquant.load(case.library(case.threads[0]), threads=case.threads[0])

    def compute(feeds: Feeds) -> list[NDArray[Any]]:
        found = model(*(_as_float32(feeds[name]) for name in names))
        return list(found) if isinstance(found, tuple) else [found]

    audit = [f"{entry.op} {entry.node}" for entry in float_audit(quantized.module)]
    return Outcome("", _on_all(case, compute), audit)


def _as_float32(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def run_reference(case: Case) -> Outcome:
    """Run the float model as it is written: fusions change results."""
    from benchmarks.peers import OnnxRuntimePeer

    peer = OnnxRuntimePeer(case.shaped, threads=1, name=REFERENCE, optimized=False)
    return Outcome("", _on_all(case, peer.run_all))


def quantize_with_onnxruntime(case: Case) -> Outcome:
    """Quantize with ONNX Runtime's tool and run the result there.

    Where sums of two products saturate at 16 bits, with 7-bit weights.
    """
    from benchmarks import post_training
    from tvmquant.schedules.isa import dot_products
    from tvmquant.target import parse_target

    count = len(next(iter(case.calibration.values())))
    batches = (
        {name: array[i : i + case.batch] for name, array in case.calibration.items()}
        for i in range(0, count, case.batch)
    )
    narrow = any(dot.saturates for dot in dot_products(parse_target(case.target)))
    post_training.quantize_with_onnxruntime(
        case.shaped, batches, case.quantized, reduce_range=narrow
    )
    return Outcome("", _on_all(case, _onnxruntime(case, case.quantized).run_all))


def run_openvino_float(case: Case) -> Outcome:
    """Run the float model in OpenVINO."""
    return Outcome("", _on_all(case, _openvino(case, case.shaped).run_all))


def run_openvino_int8(case: Case) -> Outcome:
    """Run in OpenVINO what ONNX Runtime quantized."""
    if not case.quantized.is_file():
        return Outcome("there is no quantized file to read")
    return Outcome("", _on_all(case, _openvino(case, case.quantized).run_all))


PEERS = {
    "onnxruntime-int8": quantize_with_onnxruntime,
    "openvino-float": run_openvino_float,
    "openvino-int8": run_openvino_int8,
}


def _onnxruntime(case: Case, path: Path, threads: int = 1) -> Any:
    from benchmarks.peers import OnnxRuntimePeer

    return OnnxRuntimePeer(path, threads=threads)


def _openvino(case: Case, path: Path, threads: int = 1) -> Any:
    from benchmarks.peers import OpenVINOPeer

    os.environ.update(timing.restrict_openvino(case.target))
    shapes = {name: array.shape for name, array in case.first.items()}
    return OpenVINOPeer(path, shapes, threads=threads)


def _on_all(case: Case, compute: Callable[[Feeds], list[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Run on the evaluated items, batch by batch; return each output of all of them."""
    count = len(next(iter(case.evaluation.values())))
    results = [
        compute({name: array[i : i + case.batch] for name, array in case.evaluation.items()})
        for i in range(0, count, case.batch)
    ]
    return [np.stack(values) for values in zip(*results, strict=True)]


def _accuracy_rows(make: RowMaker, case: Case, outcomes: Mapping[str, Outcome]) -> Iterator[Row]:
    reference = outcomes[REFERENCE].outputs
    worst: dict[str, float] = {}
    for config, found in outcomes.items():
        yield make(case.model, config, "works", float(not found.reason), "", reason=found.reason)
        if found.float_operators is not None:
            names = ", ".join(found.float_operators)
            count = len(found.float_operators)
            yield make(case.model, config, "float_operators", count, "", names=names)
        if config == REFERENCE or not found.outputs or not reference:
            continue
        ratios = [sqnr_db(*pair) for pair in zip(reference, found.outputs, strict=True)]
        for index, ratio in enumerate(ratios):
            yield make(case.model, config, "sqnr_db", ratio, "dB", output=index)
        worst[config] = min(ratios)
        yield make(case.model, config, "worst_sqnr_db", worst[config], "dB")
        share = _agreement(reference[0], found.outputs[0])
        yield make(case.model, config, "agreement", share, "%")
    rivals = [ratio for config, ratio in worst.items() if config != OURS and "int8" in config]
    if OURS in worst and rivals:
        gain = worst[OURS] - max(rivals)
        yield make(case.model, OURS, "gain_over_best_peer_db", gain, "dB")


def _agreement(reference: NDArray[Any], found: NDArray[Any]) -> float | None:
    """Return the share of items, or positions, of the same class, where there are classes."""
    # a run is the first axis, the batch the second
    if reference.shape != found.shape or reference.ndim < 3 or reference.shape[2] < 2:
        return None
    return float(100 * np.mean(reference.argmax(axis=2) == found.argmax(axis=2)))


def latency_rows(make: RowMaker, case: Case, works: Sequence[str], threads: int) -> Iterator[Row]:
    try:
        measured = timing.in_new_process(measure, (case, tuple(works), threads))
    except concurrent.futures.BrokenExecutor:
        return
    for config, found in measured.items():
        extra = {"min_ms": found.min_ms, "runs": len(found.seconds), "batch": case.batch}
        yield make(case.model, config, "latency_ms", found.median_ms, "ms", **extra)
    rivals = {name: t for name, t in measured.items() if name != OURS and "int8" in name}
    if OURS in measured and rivals:
        best = min(rivals, key=lambda name: rivals[name].median_ms)
        ratio = measured[OURS].median_ms / rivals[best].median_ms
        least = measured[OURS].min_ms / rivals[best].min_ms
        extra = {"peer": best, "ratio_of_min": least}
        yield make(case.model, OURS, "ratio_to_best_peer", ratio, "x", **extra)


def measure(job: tuple[Case, tuple[str, ...], int]) -> dict[str, Latency]:
    """Run the engines that work by turns, on the first batch."""
    case, works, threads = job
    feeds = case.first
    runners: dict[str, Callable[[], object]] = {}
    for config in works:
        if config == OURS:
            continue
        path = case.quantized if config.endswith("int8") else case.shaped
        load = _onnxruntime if config.startswith("onnxruntime") else _openvino
        runners[config] = timing.started(load(case, path, threads).run_all, feeds)
    if OURS in works:
        import tvmquant

        # every engine chooses its processors when its threads start: let all of them be free
        allowed = os.sched_getaffinity(0)
        model = tvmquant.load(case.library(threads), threads=threads)
        arrays = [_as_float32(feeds[info.name]) for info in model.inputs]
        runners = {OURS: model.bind(*arrays), **runners}
        os.sched_setaffinity(0, allowed)
    return timing.by_turns(runners, case.repeats)


def print_summary(rows: Sequence[Row]) -> None:
    """Print a line for each network and engine, and below what stayed float or failed, and why."""
    from tvmquant.cli.output import make_table, print_tables

    counts = sorted({int(row["threads"] or 1) for row in rows if row["metric"] == "latency_ms"})
    lines: dict[tuple[Any, Any], dict[Any, Any]] = {}
    for row in rows:
        line = lines.setdefault((row["model"], row["config"]), {})
        key = row["metric"]
        line[(key, row["threads"]) if key in ("latency_ms", "ratio_to_best_peer") else key] = row

    def cell(line: dict[Any, Any], key: Any, form: str) -> str:
        row = line.get(key)
        return "" if row is None or row["value"] is None else format(row["value"], form)

    columns = ["model", "engine", "works", "float>", "SQNR dB>", "to best peer>", "agreement %>"]
    for count in counts:
        columns += [f"ms, {count} threads>", "to best peer>"]
    cells, reasons = [], []
    for (model, config), line in lines.items():
        works = line["works"]
        cells.append(
            [
                model, config, "yes" if works["value"] else "no",
                cell(line, "float_operators", "d"), cell(line, "worst_sqnr_db", ".1f"),
                cell(line, "gain_over_best_peer_db", "+.1f"), cell(line, "agreement", ".1f"),
            ]
            + [
                text
                for count in counts
                for text in (
                    cell(line, ("latency_ms", count), ".3f"),
                    cell(line, ("ratio_to_best_peer", count), ".2f"),
                )
            ]
        )  # fmt: skip
        if works["reason"]:
            reasons.append([model, config, works["reason"]])
        elif line.get("float_operators") and line["float_operators"]["names"]:
            reasons.append([model, config, f"float: {line['float_operators']['names']}"])
    facts = ", ".join(str(rows[0][key]) for key in ("benchmark", "cpu", "isa")) if rows else ""
    print_tables(make_table(facts, columns, cells))
    if reasons:
        print_tables(make_table("", ["model", "engine", "why"], reasons))
