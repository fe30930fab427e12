"""Where the time of a network goes: every kernel call against what bounds it on this machine.

A call cannot be faster than its multiplications at the measured peak of the multipliers
(`benchmarks.kernels`), nor than its operands and result at the measured speed of reading memory.
The larger of the two is its limit. A depthwise convolution cannot sum products over channels: its
limit is that of the word products (half as many as byte products at a time) where it uses them. The
limit of a layer that counts bits is that of the loop nest of `benchmarks.binary_kernels`.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import latency
from benchmarks.peaks import Peaks, network_peaks
from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.deploy.manifest import LIBRARY_NAME, LayerInfo, Manifest
from tvmquant.devices.cpu import CpuDevice
from tvmquant.errors import DataError
from tvmquant.progress import Stage

CONFIG = "tvmquant-int8"
# of the array whose reading gives the memory's speed: what the caches keep of a network's weights
# they keep of it too
SMALLEST_ARRAY = 4 << 20
READS = 30


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures; the fields are those of `benchmarks.latency.Case`."""

    onnx: Path
    images: NDArray[np.float32]
    batch: int
    threads: int
    repeats: int
    target: str


@dataclasses.dataclass(frozen=True)
class Profile:
    """What one process measured.

    Attributes
    ----------
    calls : list of (LayerInfo, seconds, bytes)
        Every kernel call in execution order, with the size of its operands and result.
    network : float
        Seconds of a whole run, the median.
    peaks : Peaks
        Of the multipliers.
    bandwidth : float
        Bytes read a second.
    """

    calls: list[tuple[LayerInfo, float, int]]
    network: float
    peaks: Peaks
    bandwidth: float


def run(
    models: Sequence[str],
    *,
    data: Path,
    stage: Stage,
    threads: Sequence[int],
    batch: int = 1,
    repeats: int = 50,
    target: str = "native",
    image_size: int | None = None,
    before: Path | None = None,
) -> list[Row]:
    """Profile 8-bit networks.

    Parameters
    ----------
    models, data, stage, threads, batch, target, image_size
        As of `benchmarks.latency.run`.
    repeats : int
        Runs of each network; the median of each call counts.
    before : Path, optional
        Rows of an earlier profile, to show its times beside these.

    Returns
    -------
    list of Row
        Metric ``us`` of every call, with ``layer``, ``kernel``, ``share`` (of all calls), ``macs``
        (none with padding), ``bytes``, ``limit_us``, ``bound`` (``multiplies`` or ``memory``),
        ``fraction_of_limit`` and ``before_us``. The same for ``total``, the sum of the calls, whose
        limit is the sum of theirs, and for ``network``, a whole run.

    Raises
    ------
    DataError
        When a model is unknown, or a file is not there or holds no profile.
    """
    earlier = {} if before is None else _read(before)
    for name in models:
        latency.check_model(name, data)
    facts = machine_facts(target)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        for name in models:
            with stage(f"{name}: prepare"):
                onnx, images = latency.prepare(name, data, Path(scratch), image_size)
            for count in threads:
                with stage(f"{name}: build and profile, {count} threads"):
                    case = Case(onnx, images, batch, count, repeats, target)
                    profile = latency.in_new_process(measure, case)
                make = RowMaker("profile", count, {"batch": batch, **facts})
                rows += _rows(make, name, profile, earlier)
    return rows


class _KernelScale:
    """Instrument of the virtual machine that weighs the calls of known kernels."""

    def __init__(self, kernels: set[str]) -> None:
        self.kernels = kernels
        self.bytes: list[int] = []

    def __call__(self, _func: Any, name: str, before: bool, _ret: Any, *args: Any) -> int:
        if before and str(name) in self.kernels:
            tensors = [arg for arg in args if hasattr(arg, "__dlpack__")]
            self.bytes.append(sum(np.from_dlpack(tensor).nbytes for tensor in tensors))
        return 0


def _call_bytes(library: Path, manifest: Manifest, image: NDArray[Any]) -> list[int]:
    """Return the size of the operands and results of every kernel call, in order."""
    device = CpuDevice()
    scale = _KernelScale({layer.kernel for layer in manifest.layers})
    device.load(library).watch(scale, "main", [device.tensor(image)])
    return scale.bytes


def measure(case: Case) -> Profile:
    """Build a network and time its calls."""
    import tvmquant
    from benchmarks import kernels

    graph = tvmquant.load_onnx(case.onnx)
    calibration = tvmquant.calibrate(graph, case.images)
    quantized = tvmquant.quantize(graph, calibration, **target_rounding(case.target))
    image = np.resize(case.images, (case.batch, *case.images.shape[1:]))
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        out = Path(scratch, "library")
        manifest = tvmquant.build(
            quantized, target=case.target, out=out, threads=case.threads, batch=case.batch
        )
        bandwidth = read_bandwidth(manifest.library["bytes"], case.threads)
        model = tvmquant.load(out, threads=case.threads)
        sizes = _call_bytes(out / LIBRARY_NAME, manifest, image)
        calls = model.profile(image, repeats=case.repeats)
        runner = model.bind(image)
        seconds = []
        for _ in range(case.repeats):
            start = time.perf_counter()
            runner()
            seconds.append(time.perf_counter() - start)
    useful = kernels.useful_macs(quantized.module, case.batch)
    return Profile(
        [
            (dataclasses.replace(info, macs=useful.get(info.id, info.macs)), time_, size)
            for (info, time_), size in zip(calls, sizes, strict=True)
        ],
        float(np.median(seconds)),
        network_peaks(case.target, case.threads),
        bandwidth,
    )


def read_bandwidth(size: int, threads: int) -> float:
    """Return bytes a second that threads together read of an array of about so many bytes."""
    import torch

    torch.set_num_threads(threads)
    values = torch.zeros(max(size, SMALLEST_ARRAY) // 4)
    best = float("inf")
    for _ in range(READS):
        start = time.perf_counter()
        torch.dot(values, values)
        best = min(best, time.perf_counter() - start)
    return 4.0 * len(values) / best


def _rows(
    make: RowMaker,
    model: str,
    profile: Profile,
    earlier: Mapping[tuple[object, ...], float],
) -> Iterator[Row]:
    total = sum(seconds for _, seconds, _ in profile.calls)
    limits, seen = [], dict[str, int]()
    for info, seconds, size in profile.calls:
        multiplies, memory = info.macs / profile.peaks.of(info), size / profile.bandwidth
        limits.append(max(multiplies, memory))
        # a layer may have several calls
        seen[info.id] = number = seen.get(info.id, 0) + 1
        layer = info.id if number == 1 else f"{info.id} ({number})"
        yield _row(
            make, model, layer, seconds, limits[-1], earlier, share=seconds / total,
            macs=info.macs, bytes=size, kernel=info.kernel,
            bound="multiplies" if multiplies > memory else "memory",
        )  # fmt: skip
    yield _row(make, model, "total", total, sum(limits), earlier, share=1.0)
    yield _row(make, model, "network", profile.network, sum(limits), earlier)


def _row(
    make: RowMaker,
    model: str,
    layer: str,
    seconds: float,
    limit: float,
    earlier: Mapping[tuple[object, ...], float],
    **extra: object,
) -> Row:
    before = earlier.get((model, layer, make.threads, make.facts["batch"]))
    return make(
        model, CONFIG, "us", seconds * 1e6, "us", layer=layer, **extra, limit_us=limit * 1e6,
        fraction_of_limit=limit / seconds, before_us=before,
    )  # fmt: skip


def _read(path: Path) -> dict[tuple[object, ...], float]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = {
            (row["model"], row["layer"], row["threads"], row["batch"]): float(row["value"])
            for row in rows
            if row["benchmark"] == "profile"
        }
        if not found:
            raise ValueError("it has no such rows")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--before {path}: not the rows of a profile: {error!r}") from error
