"""Peak memory of running a network: tvmquant and other engines, each in a process of its own.

Those processes import this module: what it imports at the top counts for none of the engines, and
is little.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.cli.output import print_warning
from tvmquant.errors import DataError
from tvmquant.progress import Stage

if TYPE_CHECKING:
    from benchmarks import latency, peers


OURS = "tvmquant-int8"
RUNS = 10
# of Linux: what ``getrusage`` counts begins with the parent's
STATUS = Path("/proc/self/status")


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes
    ----------
    config : str
        `OURS`, or an engine of `benchmarks.latency.ENGINES` with ``-int8``.
    path : Path
        The library, or the quantized ONNX file.
    shape : tuple of int
        Of the input, batch first.
    threads : int
    environment : mapping
        Set before the engine is imported.
    """

    config: str
    path: Path
    shape: tuple[int, ...]
    threads: int
    environment: Mapping[str, str]


def run(
    models: Sequence[str],
    *,
    data: Path,
    stage: Stage,
    peers: Sequence[str],
    threads: int,
    batch: int = 1,
    target: str = "native",
    image_size: int | None = None,
) -> list[Row]:
    """Measure how much memory it takes to load a quantized network and run it.

    Parameters
    ----------
    models, data, stage, peers, batch, target, image_size
        As of `benchmarks.latency.run`.
    threads : int

    Returns
    -------
    list of Row
        ``load_mb``: largest resident memory of a process while it imports the engine, loads the
        network and runs it for the first time; ``run_mb``: while it runs on. Both without what the
        process held before: Python and numpy.

    Raises
    ------
    DataError
        When a model or peer is unknown, a file is not there, or the system is not Linux.
    TVMQuantError
        When an engine is not installed.
    """
    from benchmarks import latency

    if not STATUS.is_file():
        raise DataError(f"memory is measured from {STATUS}, which only Linux has")
    latency.check_engines(peers)
    for name in models:
        latency.check_model(name, data)
    environment = latency.restrict_openvino(target)
    make = RowMaker("memory", threads, {"batch": batch, **machine_facts(target)})
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        for name in models:
            with stage(f"{name}: build"):
                onnx, images = latency.prepare(name, data, Path(scratch), image_size)
                case = latency.Case(
                    name, onnx, images, batch, threads, 1, tuple(peers), False, target
                )
                folder = Path(scratch, name)
                files = latency.in_new_process(functools.partial(_write, folder), case)
            with stage(f"{name}: measure"):
                shape = (batch, *images.shape[1:])
                for config, path in files.items():
                    rows += _rows(make, name, Case(config, path, shape, threads, environment))
    return rows


def _write(folder: Path, case: latency.Case) -> dict[str, Path]:
    """Write a network as every engine loads it, into a new folder; return the files by engine."""
    import tvmquant
    from benchmarks.post_training import quantize_with_onnxruntime

    folder.mkdir()
    graph = tvmquant.load_onnx(case.onnx)
    calibration = tvmquant.calibrate(graph, case.images)
    quantized = tvmquant.quantize(graph, calibration, **target_rounding(case.target))
    library = folder / "library"
    tvmquant.build(
        quantized, target=case.target, out=library, threads=case.threads, batch=case.batch
    )
    files = {OURS: library}
    if case.engines:
        qdq = folder / "int8.onnx"
        quantize_with_onnxruntime(case.onnx, list(case.images[:, None]), qdq)
        files |= {f"{engine}-int8": qdq for engine in case.engines}
    return files


def _rows(make: RowMaker, model: str, case: Case) -> Iterator[Row]:
    from benchmarks import latency

    try:
        load, run = latency.in_new_process(measure, case)
    except concurrent.futures.BrokenExecutor:
        print_warning(f"{model}: {case.config} ends its process with this model; left out")
        return
    yield make(model, case.config, "load_mb", load / 1e6, "MB")
    yield make(model, case.config, "run_mb", run / 1e6, "MB")


def measure(case: Case) -> tuple[int, int]:
    """Load a network and run it; return the bytes that both took at most, the first run with load.

    As where a product is deployed, no PyTorch is there: TVM imports it where it can.
    """
    os.environ.update(case.environment)
    sys.modules["torch"] = None  # type: ignore[assignment]
    image = np.zeros(case.shape, np.float32)
    _reset_peak()
    before = peak_bytes()
    runner = _runner(case, image)
    runner()
    peak_bytes()  # reading takes a page itself, which is to be there before it counts
    load = peak_bytes()
    _reset_peak()
    for _ in range(RUNS):
        runner()
    return load - before, peak_bytes() - before


def peak_bytes() -> int:
    """Return the largest resident memory of this process since `_reset_peak`."""
    status = STATUS.read_text(encoding="ascii")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    if match is None:
        raise OSError(f"{STATUS} does not say VmHWM")
    return 1024 * int(match[1])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _runner(case: Case, image: np.ndarray) -> Callable[[], object]:
    if case.config == OURS:
        from tvmquant.deploy.loader import load

        return load(case.path, threads=case.threads).bind(image)
    from benchmarks import peers

    if case.config == "onnxruntime-int8":
        peer: peers.Peer = peers.OnnxRuntimePeer(case.path, threads=case.threads)
    else:
        peer = peers.OpenVINOPeer(case.path, case.shape, threads=case.threads)
    return lambda: peer.run(image)
