"""How long tvmquant takes to compile ResNet-50 untuned, to be imported, and to print its help."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import models as networks
from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.errors import TVMQuantError
from tvmquant.progress import Stage

# run in a fresh interpreter each; the last line printed is the time in seconds
_IMPORT = (
    "import time; t = time.perf_counter(); import tvmquant{more}; print(time.perf_counter() - t)"
)
# whatever a compile needs: TVM, PyTorch and all of tvmquant
_EVERYTHING = "; tvmquant.load_onnx, tvmquant.calibrate, tvmquant.quantize, tvmquant.build"
_BUILD = """
import json, sys, time
import tvmquant
onnx, calibration, out, threads, target, rounding = sys.argv[1:]
graph = tvmquant.load_onnx(onnx)
ranges = tvmquant.Calibration.load(calibration)
start = time.perf_counter()
quantized = tvmquant.quantize(graph, ranges, **json.loads(rounding))
tvmquant.build(quantized, out=out, threads=int(threads), target=target)
print(time.perf_counter() - start)
"""


def run(
    *,
    stage: Stage,
    threads: int,
    model: str = "resnet50",
    target: str = "native",
    repeats: int = 3,
    image_size: int | None = None,
) -> list[Row]:
    """Time a compile, the import and the help, each in `repeats` fresh processes.

    Parameters
    ----------
    stage : callable
        Called with the name of each stage; see `tvmquant.progress.Stage`.
    threads : int
        As of `tvmquant.build`.
    model : str
        Of `benchmarks.models`.
    target : str
        As of `tvmquant.build`.
    repeats : int
        Processes of which the median is reported, at least 1.
    image_size : int, optional
        Height and width of the model's images.

    Returns
    -------
    list of Row
        Of config ``tvmquant-int8``, ``build_s``: quantizing and building a calibrated graph, no
        tuning. Of config ``tvmquant``: ``import_s`` (``import tvmquant``, which loads nothing
        else), ``import_all_s`` (with all that compiling needs) and ``help_s``
        (``tvmquant --help``, the whole process).

    Raises
    ------
    TVMQuantError
        When the command ``tvmquant`` is not installed, or a process fails.
    """
    script = shutil.which("tvmquant", path=str(Path(sys.executable).parent))
    if script is None:
        raise TVMQuantError(
            f"no command tvmquant beside {sys.executable}; install it: `pip install -e .`"
        )
    make = RowMaker("compile_time", threads, {"repeats": repeats, **machine_facts(target)})
    python = (sys.executable, "-c")
    rows: list[Row] = []

    def add(name: str, config: str, metric: str, seconds: Callable[[], float]) -> None:
        with stage(metric):
            value = float(np.median([seconds() for _ in range(repeats)]))
        rows.append(make(name, config, metric, value, "s"))

    def imported(more: str) -> Callable[[], float]:
        return lambda: _printed_seconds((*python, _IMPORT.format(more=more)))

    add("", "tvmquant", "import_s", imported(""))
    add("", "tvmquant", "import_all_s", imported(_EVERYTHING))
    add("", "tvmquant", "help_s", lambda: _process_seconds((script, "--help")))
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        with stage(f"{model}: prepare"):
            onnx, calibration = _prepare(model, Path(scratch), image_size)
            rounding = json.dumps(target_rounding(target))

        def build() -> float:
            out = tempfile.mkdtemp(dir=scratch)
            files = (str(onnx), str(calibration), out)
            return _printed_seconds((*python, _BUILD, *files, str(threads), target, rounding))

        add(model, "tvmquant-int8", "build_s", build)
    return rows


def _prepare(model: str, folder: Path, image_size: int | None) -> tuple[Path, Path]:
    import tvmquant

    onnx = networks.export(model, folder / f"{model}.onnx", image_size=image_size)
    images = networks.synthetic_images(4, networks.input_shape(model, image_size), seed=0)
    calibration = folder / "calibration.json"
    tvmquant.calibrate(tvmquant.load_onnx(onnx), images).save(calibration)
    return onnx, calibration


def _process_seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    _run(command)
    return time.perf_counter() - start


def _printed_seconds(command: Sequence[str]) -> float:
    return float(_run(command).splitlines()[-1])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise TVMQuantError(f"{command[0]} ended with code {done.returncode}: {last}")
    return done.stdout
