"""Compile a graph into a folder with ``model.so`` and ``manifest.json``."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tvmquant.deploy.compiler import compile_in_worker
from tvmquant.deploy.describe import (
    describe_layers,
    describe_target,
    describe_tensors,
    present_versions,
)
from tvmquant.deploy.destination import check_destination, only_our_files
from tvmquant.deploy.manifest import (
    LIBRARY_NAME,
    MANIFEST_NAME,
    FloatOperator,
    Manifest,
    ModelFacts,
    file_sha256,
)
from tvmquant.errors import ArtifactError, QuantizationError
from tvmquant.machine import Machine
from tvmquant.target import is_elf

if TYPE_CHECKING:
    import tvm

    from tvmquant.graph import Graph
    from tvmquant.machine import TargetLike
    from tvmquant.schedules.families import Tilings


def build(
    graph: Graph,
    *,
    target: TargetLike = "native",
    out: str | os.PathLike[str],
    threads: int | None = None,
    batch: int = 1,
    force: bool = False,
    model: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    tilings: Tilings | None = None,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Compile an integer graph (or, for comparison, a float one) into a folder.

    Parameters
    ----------
    graph : Graph
        Level L2 (from `tvmquant.quantize`), or L0 for a float library.
    target : str, dict, Target or Machine
        See `tvmquant.machine.Machine.of`.
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
    tilings : callable, optional
        Tuned tilings, from `tvmquant.tuning`; default: the analytic ones.
    progress : callable, optional
        Receives the name of each stage as it begins.

    Raises
    ------
    ArtifactError
        If ``out`` exists and is not an artefact, or ``force`` is not given.
    TargetError
        If the target or the number of threads is not valid, or LLVM cannot compile for it.
    QuantizationError
        If the graph is of another level, or batch makes no sense.
    """
    from tvmquant.levels import canonical
    from tvmquant.passes import pipeline
    from tvmquant.passes.lower_to_kernels import default_tilings

    if graph.level not in ("L0", "L2"):
        raise QuantizationError(f"a graph of level {graph.level} cannot be built; quantize it")
    if batch < 1:
        raise QuantizationError(f"batch = {batch}; expected at least 1")
    machine = Machine.of(target, threads)
    if batch > 1 and (fixed := [s for _, s, _ in graph.inputs if s and s[0] not in (None, batch)]):
        raise QuantizationError(
            f"batch = {batch}, but the model fixes its batch to {fixed[0][0]}; leave batch out and "
            "give the input's shape with another batch (input_shapes, --input-shape), or export "
            "the model with a dynamic batch"
        )
    say = progress or (lambda _stage: None)
    folder = check_destination(Path(out), force=force)

    say("kernels")
    module = (graph if graph.level == "L2" else canonical(graph)).module
    lowered = pipeline.lower(module, machine, batch, tilings or default_tilings)
    entries = pipeline.expose_integers(lowered)
    stored = pipeline.store_weights(entries) if is_elf(machine.triple) else entries
    has_raw = "raw" in {str(v.name_hint) for v in entries.get_global_vars()}

    with _work_folder(folder) as work:
        say("compile")
        compile_in_worker(stored, machine.target, work / LIBRARY_NAME)
        inputs, outputs = describe_tensors(graph, module, entries, has_raw)
        library = work / LIBRARY_NAME
        manifest = Manifest(
            model=cast("ModelFacts", {"name": graph.name, **(model or {})}),
            inputs=inputs,
            outputs=outputs,
            target=describe_target(machine),
            threads=machine.threads,
            layers=describe_layers(module, entries, batch),
            float_audit=_audit(module) if graph.level == "L2" else [],
            versions=present_versions(),
            library={"sha256": file_sha256(library), "bytes": library.stat().st_size},
            preprocess=preprocess,
            has_raw=has_raw,
        )
        manifest.save(work / MANIFEST_NAME)
        _install(work, folder)
    return manifest


def _audit(module: tvm.IRModule) -> list[FloatOperator]:
    from tvmquant.passes.verify_integer_only import float_audit

    return [{"op": f.op, "node": f.node, "reason": f.reason} for f in float_audit(module)]


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Make a folder beside ``folder`` to build in; take away what is left of it in the end.

    Takes away as well what builds of ``folder`` left that were killed. Each holds a lock on its
    folder, which the system opens when the process ends, however it does.

    Raises
    ------
    ArtifactError
        If it cannot be made.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent):  # else a folder could be taken for left before it is locked
            _remove_abandoned(folder)
            work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            lock = os.open(work, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise ArtifactError(f"{folder.parent} cannot be written to: {error.strerror}") from None
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)
        with contextlib.suppress(OSError):  # the library is in it
            for parent in made:
                parent.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, waiting for it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    """Remove the work folders of builds of ``folder`` whose process has ended."""
    for work in folder.parent.glob(f".{glob.escape(folder.name)}.????????"):
        if not (work.is_dir() and only_our_files(work)):
            continue
        handle = os.open(work, os.O_RDONLY)
        try:
            with contextlib.suppress(BlockingIOError):  # it is at work
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(work, ignore_errors=True)
        finally:
            os.close(handle)


def _install(work: Path, folder: Path) -> None:
    """Move the finished files into place, the manifest last: it marks a complete artefact."""
    work.chmod(0o755)
    if not folder.exists():
        os.rename(work, folder)
        return
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for name in (LIBRARY_NAME, MANIFEST_NAME):
        os.replace(work / name, folder / name)
