"""Compile a graph into a folder with ``model.so`` and ``manifest.json``."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.deploy.describe import describe_layers, describe_tensors
from tvmquant.deploy.manifest import (
    LIBRARY_NAME,
    MANIFEST_NAME,
    Manifest,
    file_sha256,
)
from tvmquant.errors import ArtifactError, QuantizationError, TargetError
from tvmquant.target import parse_target, physical_cores, required_features

if TYPE_CHECKING:
    import tvm

    from tvmquant.graph import Graph

Progress = Callable[[str], None]


def build(
    graph: Graph,
    *,
    target: str | dict[str, Any] | tvm.target.Target = "native",
    out: str | os.PathLike[str],
    threads: int | None = None,
    batch: int = 1,
    force: bool = False,
    model: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Compile an integer graph (or, for comparison, a float one) into a folder.

    Parameters
    ----------
    graph : Graph
        Level L2 (from `tvmquant.quantize`), or L0 for a float library.
    target : str, dict or Target
        See `tvmquant.target.parse_target`.
    out : path
        Folder to write; appears only when complete.
    threads : int, optional
        Threads to divide the work for; default: the physical cores of this machine.
    batch : int
        Batch size to compile for.
    force : bool
        Replace an artefact that is already there.
    model, preprocess : dict, optional
        Kept in the manifest: where the model came from, how its calibration images were read.
    progress : callable, optional
        Receives the name of each stage as it begins.

    Raises
    ------
    ArtifactError
        If ``out`` exists and is not an artefact, or ``force`` is not given.
    TargetError
        If the target is not valid, or LLVM cannot compile for it.
    QuantizationError
        If the graph is of another level, or batch or threads make no sense.
    """
    from tvmquant.passes import pipeline
    from tvmquant.passes.verify_integer_only import float_audit

    if graph.level not in ("L0", "L2"):
        raise QuantizationError(f"a graph of level {graph.level} cannot be built; quantize it")
    if batch < 1 or (threads is not None and threads < 1):
        raise QuantizationError(f"batch = {batch}, threads = {threads}; expected at least 1")
    say = progress or (lambda _stage: None)
    folder = _destination(Path(out), force)
    tvm_target = parse_target(target)
    count = threads or physical_cores()

    say("kernels")
    module = graph.module if graph.level == "L2" else pipeline.canonicalize(graph.module)
    lowered = pipeline.lower(module, tvm_target, count, batch)
    entries = pipeline.expose_integers(lowered)
    has_raw = "raw" in {str(v.name_hint) for v in entries.get_global_vars()}

    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        say("compile")
        _compile_in_worker(entries, tvm_target, work / LIBRARY_NAME)
        inputs, outputs = describe_tensors(graph, module, entries, has_raw)
        library = work / LIBRARY_NAME
        manifest = Manifest(
            model={"name": graph.name, **(model or {})},
            inputs=inputs,
            outputs=outputs,
            target={
                "config": str(tvm_target),
                "features": required_features(tvm_target),
            },
            threads=count,
            layers=describe_layers(module, lowered),
            float_audit=[vars(op) for op in float_audit(module)] if graph.level == "L2" else [],
            versions={
                "tvmquant": importlib.metadata.version("tvmquant"),
                "tvm": importlib.metadata.version("apache-tvm"),
            },
            library={"sha256": file_sha256(library), "bytes": library.stat().st_size},
            preprocess=preprocess,
            has_raw=has_raw,
        )
        manifest.save(work / MANIFEST_NAME)
        _install(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _destination(folder: Path, force: bool) -> Path:
    folder = folder.absolute()
    if not folder.exists():
        return folder
    ours = (folder / MANIFEST_NAME).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if not ours and not _only_our_files(folder):
        raise ArtifactError(f"{folder} exists and is not an artefact of tvmquant; choose another")
    if (folder / MANIFEST_NAME).is_file() and not force:
        raise ArtifactError(f"{folder} exists; pass force (--force) to build it again")
    return folder


def _only_our_files(folder: Path) -> bool:
    """Whether a folder holds nothing but cached stages of an earlier, unfinished run."""
    return folder.is_dir() and all(p.suffix == ".json" for p in folder.iterdir())


def _install(work: Path, folder: Path) -> None:
    """Move the finished files into place, the manifest last: it marks a complete artefact."""
    work.chmod(0o755)
    if not folder.exists():
        os.rename(work, folder)
        return
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for name in (LIBRARY_NAME, MANIFEST_NAME):
        os.replace(work / name, folder / name)


def _compile_in_worker(module: tvm.IRModule, target: tvm.target.Target, library: Path) -> None:
    """Compile and link in a forked process: an abort inside LLVM must not end this one."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=_compile, args=(module, target, library, send))
    worker.start()
    send.close()
    try:
        problem = receive.recv()
    except EOFError:
        problem = None
    worker.join()
    if problem:
        raise TargetError(f"compilation for {target} failed: {problem}")
    if worker.exitcode != 0 or not library.is_file():
        raise TargetError(
            f"the compiler ended with code {worker.exitcode} for target {target}; "
            "the target may lack an instruction set that a kernel needs"
        )


def _compile(module: tvm.IRModule, target: tvm.target.Target, library: Path, send: Any) -> None:
    from tvm import relax

    from tvmquant.passes.pipeline import virtual_machine_pipeline

    try:
        with target:
            executable = relax.build(module, target, relax_pipeline=virtual_machine_pipeline())
        executable.export_library(str(library))
        send.send(None)
    except Exception as error:  # whatever it is, the parent reports it as one message
        send.send(f"{type(error).__name__}: {str(error).strip()[-2000:]}")
