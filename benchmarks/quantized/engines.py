"""Run one quantized file in every engine, output by output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import Task, open_images
from benchmarks.quantized.agreement import Values
from benchmarks.real_inputs import Feeds
from benchmarks.rows import target_rounding

if TYPE_CHECKING:
    from tvmquant.graph import Graph


@dataclasses.dataclass(frozen=True)
class Job:
    """Files to import, and what to run them on.

    Attributes
    ----------
    onnx : Path
        The file that is compiled.
    libraries : dict of int to Path
        Where the library for so many threads goes; the first one is run.
    runs : sequence of dict of str to array
    copies : dict of Path to sequence of dict of str to array
        Further files that are simulated, each with its runs.
    target : str
    """

    onnx: Path
    libraries: dict[int, Path]
    runs: Sequence[Feeds]
    copies: dict[Path, Sequence[Feeds]]
    target: str


@dataclasses.dataclass(frozen=True)
class Imported:
    """What our import of a file computes.

    Attributes
    ----------
    copies : dict of Path to sequence of dict of str to array
        What each copy puts out, simulated.
    differing : int
        Numbers of the first run of the library that are not those of the simulation.
    float_operators : list of (str, str)
        Operators that stayed float: type, and node of the file.
    """

    copies: dict[Path, Values]
    differing: int
    float_operators: list[tuple[str, str]]


def import_and_run(job: Job) -> Imported:
    """Import a file with its own scales, build its libraries, and run one."""
    import tvmquant
    from tvmquant.passes.verify_integer_only import float_audit

    rounding = target_rounding(job.target)
    graph = tvmquant.load_onnx(job.onnx)
    integer = tvmquant.quantize(graph, **rounding)
    inputs = _arrays(graph, job.runs[0])
    for threads, out in job.libraries.items():
        tvmquant.build(integer, target=job.target, out=out, threads=threads, batch=len(inputs[0]))
    threads, out = next(iter(job.libraries.items()))
    found = tvmquant.load(out, threads=threads)(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    expected = tvmquant.simulate(integer, *inputs)
    differing = sum(int((a != b).sum()) for a, b in zip(found, expected, strict=True))
    copies = {}
    for path, runs in job.copies.items():
        copy = tvmquant.load_onnx(path)
        simulated = tvmquant.quantize(copy, **rounding)
        outputs = [tvmquant.simulate(simulated, *_arrays(copy, feeds)) for feeds in runs]
        copies[path] = _named(path, outputs)
    audit = [(entry.op, entry.node) for entry in float_audit(integer.module)]
    return Imported(copies, differing, audit)


def _arrays(graph: Graph, feeds: Feeds) -> list[NDArray[Any]]:
    """Return the arrays that a graph takes, in its order."""
    arrays = (feeds[name] for name, _, _ in graph.inputs)
    return [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]


def run_onnxruntime(
    path: Path, runs: Sequence[Feeds], *, optimized: bool = False, threads: int = 1
) -> Values:
    """Run a file in ONNX Runtime, by default as it is written."""
    from benchmarks.peers import OnnxRuntimePeer

    peer = OnnxRuntimePeer(path, threads=threads, optimized=optimized)
    return _named(path, [peer.run_all(feeds) for feeds in runs])


def run_float64(path: Path, runs: Sequence[Feeds]) -> Values:
    """Evaluate a file without the rounding noise of float32."""
    import onnx

    from benchmarks.quantized.float64 import Float64Evaluator

    evaluator = Float64Evaluator(onnx.load(str(path)))
    names = _output_names(path)
    return _named(path, [evaluator.run(names, feeds) for feeds in runs])


def count_top1(job: tuple[Path, Path, Path, Task, int | None]) -> tuple[int, int, int, int]:
    """Classify the held-out images of a task with a library and with ONNX Runtime.

    Parameters
    ----------
    job : (library, file, folder of the data, task, most images)

    Returns
    -------
    tuple of int
        Images; those that the library, and ONNX Runtime, classify right; those that both classify
        equally.
    """
    import tvmquant
    from benchmarks.peers import OnnxRuntimePeer

    library, path, data, task, limit = job
    images = open_images(data, task, task.evaluation, 1)
    if limit is not None:
        images = images.subset(step=max(1, len(images) // limit), limit=limit)
    model = tvmquant.load(library)
    peer = OnnxRuntimePeer(path, threads=1, optimized=False)
    votes = []
    for batch, labels in images:
        found = (model(batch), peer.run(batch))
        votes.append([int(labels[0]), *(int(np.argmax(logits)) for logits in found)])
    label, ours, theirs = np.array(votes).T
    equal = (ours == label, theirs == label, ours == theirs)
    return (len(votes), *(int(np.count_nonzero(hits)) for hits in equal))


def _named(path: Path, outputs: Sequence[Sequence[NDArray[Any]]]) -> Values:
    names = _output_names(path)
    return [dict(zip(names, found, strict=True)) for found in outputs]


def _output_names(path: Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(str(path), load_external_data=False).graph.output]
