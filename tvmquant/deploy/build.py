"""Compile a graph into a folder with ``model.so`` and ``manifest.json``."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
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
    Variant,
    file_sha256,
)
from tvmquant.entries import entry_name
from tvmquant.errors import ArtifactError, QuantizationError
from tvmquant.machine import Machine
from tvmquant.target import is_elf

if TYPE_CHECKING:
    import tvm

    from tvmquant.graph import Graph
    from tvmquant.machine import TargetLike
    from tvmquant.schedules.families import Tilings


def build(
    graph: Graph | Mapping[int, Graph],
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
    graph : Graph, or mapping of int to Graph
        Level L2 (from `tvmquant.quantize`), or L0 for a float library. Of a mapping the library has
        the network at several bit widths, to choose from when it is loaded
        (``tvmquant.load(out, width=4)``): weights of the widest are stored once, and make those of
        a layer at another width wherever these follow from them by one requantization.
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
        If the graph is of another level, or batch makes no sense, or graphs of several widths have
        other inputs or outputs.
    """
    from tvmquant.levels import canonical
    from tvmquant.passes import pipeline
    from tvmquant.passes.lower_to_kernels import default_tilings

    graphs = dict(sorted(graph.items(), reverse=True)) if isinstance(graph, Mapping) else {0: graph}
    _check_graphs(graphs, batch)
    machine = Machine.of(target, threads)
    say = progress or (lambda _stage: None)
    folder = check_destination(Path(out), force=force)

    say("kernels")
    modules = {w: (g if g.level == "L2" else canonical(g)).module for w, g in graphs.items()}
    merged = pipeline.merge(
        {
            width: pipeline.expose_integers(
                pipeline.lower(module, machine, batch, tilings or default_tilings)
            )
            for width, module in modules.items()
        }
    )
    stored = pipeline.store_weights(merged) if is_elf(machine.triple) else merged
    widest, *others = graphs

    def described(width: int) -> Variant:
        """Describe the network at a width."""
        entry = 0 if width == widest else width
        functions = {str(v.name_hint) for v in merged.get_global_vars()}
        has_raw = entry_name("raw", entry) in functions
        graph, module = graphs[width], modules[width]
        inputs, outputs = describe_tensors(graph, module, merged, has_raw, entry)
        layers = describe_layers(module, merged, batch, entry)
        audit = _audit(module) if graph.level == "L2" else []
        return Variant(width, inputs, outputs, layers, audit, has_raw)

    with _work_folder(folder) as work:
        say("compile")
        compile_in_worker(stored, machine.target, work / LIBRARY_NAME)
        library = work / LIBRARY_NAME
        network = described(widest)
        manifest = Manifest(
            model=cast("ModelFacts", {"name": graphs[widest].name, **(model or {})}),
            inputs=network.inputs,
            outputs=network.outputs,
            target=describe_target(machine),
            threads=machine.threads,
            layers=network.layers,
            float_audit=network.float_audit,
            versions=present_versions(),
            library={"sha256": file_sha256(library), "bytes": library.stat().st_size},
            preprocess=preprocess,
            has_raw=network.has_raw,
            width=widest,
            variants=[described(width) for width in others],
        )
        manifest.save(work / MANIFEST_NAME)
        _install(work, folder)
    return manifest


def _check_graphs(graphs: Mapping[int, Graph], batch: int) -> None:
    """Refuse graphs that cannot be built, or not together."""
    if batch < 1:
        raise QuantizationError(f"batch = {batch}; expected at least 1")
    if not graphs:
        raise QuantizationError("no graph to build")
    first = next(iter(graphs.values()))
    for width, graph in graphs.items():
        if graph.level not in ("L0", "L2"):
            raise QuantizationError(f"a graph of level {graph.level} cannot be built; quantize it")
        if (graph.inputs, graph.outputs) != (first.inputs, first.outputs):
            raise QuantizationError(
                f"the graph at width {width} has other inputs or outputs than the widest; expected "
                "one network at several widths"
            )
    if batch > 1 and (fixed := [s for _, s, _ in first.inputs if s and s[0] not in (None, batch)]):
        raise QuantizationError(
            f"batch = {batch}, but the model fixes its batch to {fixed[0][0]}; leave batch out and "
            "give the input's shape with another batch (input_shapes, --input-shape), or export "
            "the model with a dynamic batch"
        )


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
