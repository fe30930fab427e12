"""Tune a network's kernels into a folder: its database, and the latency table as JSON and CSV."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.bit_choice import DEFAULT_CHOICES, BitChoice
from tvmquant.deploy.remote import check_machine
from tvmquant.devices.tracker import Tracker
from tvmquant.errors import QuantizationError, TuningError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.layers import is_quantized
from tvmquant.machine import Machine
from tvmquant.quantization import quantize
from tvmquant.random_calibration import calibrate_with_random_items
from tvmquant.tuning.database import Database
from tvmquant.tuning.latency import LatencyTable
from tvmquant.tuning.measure import DeviceRunner, HostRunner, Runner
from tvmquant.tuning.tuner import Tuner, Tuning, TuningProgress, count
from tvmquant.tuning.workload import Workload, workloads_by_choice, workloads_of

if TYPE_CHECKING:
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph
    from tvmquant.machine import TargetLike

Layers = dict[str, dict[str, Workload]]


@dataclass(frozen=True)
class Tuned:
    """What `tune` did.

    Parameters
    ----------
    tuning : Tuning
        Trials, times and whether it was interrupted.
    database : Database
        Its `Database.tilings` is what `tvmquant.build` takes.
    table : LatencyTable
        Of the folder: of this model, and of others tuned into it before.
    table_path : Path
        The table as JSON; beside it lies the same as ``.csv``.
    layers, workloads : int
        Layers of the network, and distinct kernels over all choices.
    """

    tuning: Tuning
    database: Database
    table: LatencyTable
    table_path: Path
    layers: int
    workloads: int


def tune(
    graph: Graph,
    out: str | os.PathLike[str],
    *,
    target: TargetLike = "native",
    threads: int | None = None,
    choices: Iterable[BitChoice] | None = None,
    calibration: Calibration | None = None,
    batch: int = 1,
    quantize_options: Mapping[str, Any] | None = None,
    trials: int | None = None,
    seconds: float | None = None,
    rpc: str | Tracker | None = None,
    rpc_key: str | None = None,
    seed: int = 0,
    stage: Callable[[str], None] | None = None,
    progress: Callable[[TuningProgress], None] | None = None,
) -> Tuned:
    """Measure and tune the kernels of a network for a target.

    Parameters
    ----------
    graph : Graph
        Level L0: every layer under every choice. Level L2, or L0 of a model that is quantized
        already: as it is quantized.
    out : path
        Folder of the database; what it holds already is used and added to.
    target, threads, batch
        As of `tvmquant.build`; threads must be given with a tracker.
    choices : iterable of BitChoice, optional
        For level L0; default: `DEFAULT_CHOICES`.
    calibration : Calibration, optional
        For level L0; default: of random inputs.
    quantize_options : mapping, optional
        For level L0: further options of `tvmquant.quantize`, of which kernels depend on
        ``bound_pairs``.
    trials, seconds
        As of `Tuner.run`.
    rpc : str or Tracker, optional
        ``HOST:PORT`` of the RPC tracker whose devices measure; default: this machine measures.
    rpc_key : str, optional
        Under which the devices registered with the tracker.
    seed : int
        Of the search.
    stage : callable, optional
        Receives the name of each stage as it begins: ``quantize``, ``tune``.
    progress : callable, optional
        Receives a `TuningProgress` after every measurement.

    Raises
    ------
    TuningError
        If the database does not fit, or no kernel can be measured. What was measured is kept.
    DeviceError
        If the tracker or its devices are not there or get lost, or lack features of the target.
        What was measured is kept.
    DataError
        If the folder's latency table is damaged; nothing is measured then.
    QuantizationError, ModelError, TargetError
        If the graph cannot be quantized or compiled so, or this machine does not run what is
        compiled for the target and no tracker is named.
    """
    say = stage or (lambda _name: None)
    tracker = Tracker.of(rpc, rpc_key)
    if batch < 1:
        raise TuningError(f"batch = {batch}; expected at least 1")
    machine = Machine.of(target, threads, remote=tracker is not None)
    check_machine(machine, tracker)
    runner: Runner | None = None
    if tracker is not None:
        runner = DeviceRunner(tracker, machine.threads)
    database = Database(out, machine, cpu=runner.cpu if runner else "")
    path = database.folder / f"latency-{database.path.stem}.json"
    # A table that cannot be added to is told now, not after hours of measuring.
    _updated(path, LatencyTable.collect(database, graph.name, {}))

    say("quantize")
    layers = _layers(graph, choices, calibration, machine, batch, quantize_options)
    weights = count(workload for by_choice in layers.values() for workload in by_choice.values())
    if not weights:
        raise TuningError(f"the model {graph.name!r} has no layer to tune")
    say("tune")
    tuner = Tuner(
        database, weights, runner=runner or HostRunner(machine.threads), seed=seed,
        progress=progress,
    )  # fmt: skip
    tuning = tuner.run(trials=trials, seconds=seconds)

    table = _updated(path, LatencyTable.collect(database, graph.name, layers))
    table.to_json(path)
    table.to_csv(path.with_suffix(".csv"))
    return Tuned(tuning, database, table, path, len(layers), len(weights))


def _layers(
    graph: Graph,
    choices: Iterable[BitChoice] | None,
    calibration: Calibration | None,
    machine: Machine,
    batch: int,
    quantize_options: Mapping[str, Any] | None,
) -> Layers:
    """Return the workloads by layer and choice."""
    if graph.level == "L0" and is_quantized(graph):
        graph, choices = quantize(graph, calibration, **(quantize_options or {})), None
        quantize_options = None
    if graph.level == "L0":
        ranges = calibration or calibrate_with_random_items(graph)
        wanted = dict.fromkeys(choices or DEFAULT_CHOICES)
        return workloads_by_choice(
            graph, ranges, wanted, machine, batch, **(quantize_options or {})
        )
    if choices is not None or quantize_options:
        raise QuantizationError(
            "a quantized graph is rounded and has its bit widths; leave out choices and "
            "quantize_options"
        )
    found: Layers = {}
    taken = _choices_of(graph)
    for layer, workload in workloads_of(graph, machine, batch).items():
        found[layer] = {taken[layer]: workload}
    return found


def _choices_of(graph: Graph) -> dict[str, str]:
    """Return the bit choice of every layer of an integer graph."""
    found = {}
    for _, value in bindings_of(graph.main):
        if qop.is_call(value, *qop.CONTRACTIONS):
            found[span_name(value)] = qop.attributes(value)["choice"]
    return found


def _updated(path: Path, found: LatencyTable) -> LatencyTable:
    """Return the table of a folder with the entries that were found now in place of older ones."""
    if not path.is_file():
        return found
    return found.completed_by(LatencyTable.from_json(path))
