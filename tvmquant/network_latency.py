"""Latency of every layer at every bit choice, measured inside the whole network on its target.

Kernels timed alone find their operands in the caches; in a network they do not, and the sum of lone
kernels is off (HAWQ-V3's additive table by 1.3 to 1.6 times). So a few whole networks are built,
one per bit choice, each with that choice wherever it is possible, and every kernel is timed where
it runs:

    latency(plan) = fixed + sum_i t_i(choice of layer i)                                         (1)

with ``t_i(c) = (1 + e_c) m_i(c)``, where ``m_i(c)`` is the median time of layer i's kernels in the
network of choice c, and ``fixed`` what remains of the measured latency of the 8-bit network:
kernels that belong to no layer (pools, borders) and the dispatch of kernels. The ``e_c``, a few
percent and 0 for w8a8, make (1) agree with the measured latency of the narrower networks, where the
kernels meet other neighbours. Choices for which a layer has the same kernel, as widths without one
of their own have, share one ``m_i`` and one ``e_c``. The networks are timed in turns, so that all
meet the same machine.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tvmquant.bit_choice import W8A8, BitChoice
from tvmquant.errors import AllocationError
from tvmquant.layers import Layer, quantizable_layers, uniform_choices
from tvmquant.progress import Progress
from tvmquant.records import load_record, save_record

if TYPE_CHECKING:
    import os

    from tvmquant.calibration import Calibration
    from tvmquant.deploy.loader import Model
    from tvmquant.devices.tracker import Tracker
    from tvmquant.graph import Graph
    from tvmquant.machine import TargetLike


SCHEMA_VERSION: Final = 1
# Rounds of timing, each of `RUNS` runs of every network; of fast ones more, so that a round takes
# `ROUND_SECONDS` (the first runs after a pause are slow) and all of them `SECONDS` (what else the
# machine does comes and goes by the second).
ROUNDS: Final = 8
RUNS: Final = 5
ROUND_SECONDS: Final = 0.1
SECONDS: Final = 6.0
# A larger correction of a choice is not the network's but another program's on the same machine.
LARGEST_CORRECTION: Final = 0.25


class NetworkLatency(BaseModel):
    """Terms of equation (1), in milliseconds.

    Parameters
    ----------
    schema_version : int
        1.
    model : str
        Fingerprint of the float graph.
    target : str
        As TVM prints it.
    threads : int
    device : str
        What measured: the processor's name, or ``rpc:KEY``.
    layers : dict of str to (dict of str to float)
        By layer, then by the text of the choice.
    fixed_ms : float
    networks_ms : dict of str to float
        Measured latency of the network of each choice.
    untuned : tuple of str
        Layers that took the analytic tiling under some choice, since a table of measurements, where
        one was given, has none of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    target: str
    threads: int = Field(gt=0)
    device: str = ""
    layers: dict[str, dict[str, float]]
    fixed_ms: float
    networks_ms: dict[str, float]
    untuned: tuple[str, ...] = ()

    def predict(self, choices: Mapping[str, BitChoice]) -> float:
        """Return the latency of a plan by equation (1).

        Parameters
        ----------
        choices : mapping of str to BitChoice
            By layer; w8a8 where not named, unless the model has another.

        Returns
        -------
        float
            In milliseconds.

        Raises
        ------
        AllocationError
            When a choice was not measured or names no layer; names the layer.
        """
        if strangers := [layer for layer in choices if layer not in self.layers]:
            raise AllocationError(f"no latency was measured of a layer {strangers[0]!r}")
        total = self.fixed_ms
        for layer, times in self.layers.items():
            choice = str(choices.get(layer, W8A8))
            if layer not in choices and len(times) == 1:
                (choice,) = times
            if choice not in times:
                raise AllocationError(
                    f"layer {layer!r} was not measured with {choice}, only with {', '.join(times)}"
                )
            total += times[choice]
        return total

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an existing file is replaced at once or not at all."""
        save_record(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NetworkLatency:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            When the file is missing, not JSON, of another version, or a field is wrong.
        """
        return load_record(cls, path, "delete it to measure again")


def measure_network(
    graph: Graph,
    calibration: Calibration,
    *,
    choices: Sequence[BitChoice],
    target: TargetLike = "native",
    threads: int | None = None,
    batch: int = 1,
    tilings: Any = None,
    pin_ends: bool = True,
    quantize_options: Mapping[str, Any] | None = None,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
) -> NetworkLatency:
    """Build and time the network of each choice; those of equal kernels (`Workload`) once.

    Parameters
    ----------
    graph : Graph
        Level L0.
    calibration : Calibration
    choices : sequence of BitChoice
        A choice with narrow activations also yields times with 8-bit ones for the layers that must
        keep those, so each layer has a time for every choice that it allows.
    target, threads, batch, tilings
        As of `tvmquant.build`.
    pin_ends : bool
        Time the first and the last layer with w8a8 only.
    quantize_options : mapping, optional
        Further options of `tvmquant.quantize`.
    tracker : Tracker, optional
        Whose device times the networks; default: this machine does.
    progress : callable (done, total), optional
        Counts networks built, then rounds of timing.

    Raises
    ------
    TVMQuantError
        As `tvmquant.quantize`, `tvmquant.build` and `tvmquant.load`.
    """
    from tvmquant.deploy.build import build
    from tvmquant.deploy.loader import load
    from tvmquant.deploy.remote import open_device
    from tvmquant.machine import Machine
    from tvmquant.quantization import quantize
    from tvmquant.tuning.database import noting
    from tvmquant.tuning.workload import workloads_of

    machine = Machine.of(target, threads)
    untuned: list[str] = []
    noted = None if tilings is None else noting(tilings, untuned)
    layers = quantizable_layers(graph)
    wanted = list(dict.fromkeys([W8A8, *choices]))
    total = len(wanted) + ROUNDS
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        folders: dict[BitChoice, Path] = {}
        plans: dict[BitChoice, dict[str, BitChoice]] = {}
        kernels_of: dict[BitChoice, dict[str, str]] = {}
        for index, choice in enumerate(wanted):
            plans[choice] = uniform_choices(layers, choice, pin_ends=pin_ends)
            quantized = quantize(
                graph, calibration, choices=plans[choice], **(quantize_options or {})
            )
            keys = {name: w.key for name, w in workloads_of(quantized, machine, batch).items()}
            if keys not in kernels_of.values():
                folders[choice] = Path(scratch, str(choice))
                build(quantized, target=machine, out=folders[choice], batch=batch, tilings=noted)
            kernels_of[choice] = keys
            if progress is not None:
                progress(index + 1, total)
        with open_device(tracker, machine) as device:  # a shared one is free meanwhile
            networks = {choice: load(path, device=device) for choice, path in folders.items()}
            times, kernels = _time(
                networks, lambda n: progress and progress(len(wanted) + n, total)
            )
            measured_by = device.name
        manifest = networks[wanted[0]].manifest
    same = _first_alike(plans, kernels_of)
    table, fixed = _terms(layers, {choice: same[choice] for choice in networks}, times, kernels)
    for choice, plan in plans.items():
        for name, taken in plan.items():
            table[name][str(taken)] = table[name][str(same[choice][name])]
    built = {choice: next(n for n in networks if kernels_of[n] == kernels_of[choice])
             for choice in wanted}  # fmt: skip
    return NetworkLatency(
        model=graph.fingerprint(),
        target=manifest.target["config"],
        threads=manifest.threads,
        device=measured_by,
        layers=table,
        fixed_ms=fixed,
        networks_ms={str(choice): times[built[choice]] for choice in wanted},
        untuned=tuple(dict.fromkeys(untuned)),
    )


def _first_alike(
    plans: Mapping[BitChoice, Mapping[str, BitChoice]],
    kernels_of: Mapping[BitChoice, Mapping[str, str]],
) -> dict[BitChoice, dict[str, BitChoice]]:
    """Return, for every layer of every network, the first choice that has the same kernel there."""
    first: dict[tuple[str, str], BitChoice] = {}
    return {
        network: {
            layer: first.setdefault((layer, kernels_of[network][layer]), choice)
            for layer, choice in plan.items()
        }
        for network, plan in plans.items()
    }


def _time(
    networks: Mapping[BitChoice, Model], progress: Callable[[int], object]
) -> tuple[dict[BitChoice, float], dict[BitChoice, dict[str, float]]]:
    """Return the median latency of each network and of each layer's kernels in it, in ms."""
    from tvmquant.benchmark import measure_interleaved, random_inputs, runner
    from tvmquant.devices.device import seconds_of

    inputs = {choice: random_inputs(model.inputs) for choice, model in networks.items()}
    runners = {str(c): runner(model, inputs[c]) for c, model in networks.items()}
    whole: dict[str, list[float]] = {str(choice): [] for choice in networks}
    parts: dict[BitChoice, dict[str, list[float]]] = {choice: {} for choice in networks}
    turns = []
    for _ in range(RUNS + 1):  # what asking a device takes counts too
        start = time.perf_counter()
        for run in runners.values():
            seconds_of(run)
        turns.append(time.perf_counter() - start)
    turn = min(turns)
    runs = max(RUNS, math.ceil(ROUND_SECONDS / 2 / turn))
    rounds = max(ROUNDS, math.ceil(SECONDS / (2 * runs * turn)))
    for index in range(rounds):
        for name, seconds in measure_interleaved(runners, repeats=runs, warmup=1).items():
            whole[name] += seconds
        for choice, model in networks.items():
            sums: dict[str, float] = {}
            for info, kernel in model.profile(*inputs[choice], repeats=runs):
                sums[info.id] = sums.get(info.id, 0.0) + kernel
            for layer, total in sums.items():
                parts[choice].setdefault(layer, []).append(total)
        progress((index + 1) * ROUNDS // rounds)
    return (
        {choice: 1e3 * float(np.median(whole[str(choice)])) for choice in networks},
        {
            choice: {layer: 1e3 * float(np.median(runs)) for layer, runs in of_layers.items()}
            for choice, of_layers in parts.items()
        },
    )


def _terms(
    layers: Sequence[Layer],
    plans: Mapping[BitChoice, Mapping[str, BitChoice]],
    times: Mapping[BitChoice, float],
    kernels: Mapping[BitChoice, Mapping[str, float]],
) -> tuple[dict[str, dict[str, float]], float]:
    """Return each layer's time by choice, and what is fixed."""
    table: dict[str, dict[str, float]] = {}
    for layer in layers:
        by_choice: dict[str, list[float]] = {}
        for network, plan in plans.items():
            by_choice.setdefault(str(plan[layer.id]), []).append(kernels[network][layer.id])
        table[layer.id] = {choice: float(np.median(runs)) for choice, runs in by_choice.items()}
    # what every network has, such as the choices of a model's own, needs no correction
    known = {str(choice) for choice in plans[W8A8].values()} | {str(W8A8)}
    narrow = sorted({choice for row in table.values() for choice in row} - known)
    networks = [network for network in plans if network != W8A8]
    sums = {network: dict.fromkeys([*known, *narrow], 0.0) for network in plans}
    for network, plan in plans.items():
        for layer_id, choice in plan.items():
            sums[network][str(choice)] += table[layer_id][str(choice)]
    fixed = times[W8A8] - sum(sums[W8A8].values())
    if not narrow:
        return table, fixed
    missing = [times[network] - fixed - sum(sums[network].values()) for network in networks]
    parts = np.array([[sums[network][choice] for choice in narrow] for network in networks])
    found = np.linalg.lstsq(parts, np.array(missing), rcond=None)[0]
    correction = np.clip(found, -LARGEST_CORRECTION, LARGEST_CORRECTION)
    scale = dict.fromkeys(known, 1.0) | dict(zip(narrow, (1.0 + correction).tolist(), strict=True))
    return {
        layer_id: {choice: scale[choice] * milliseconds for choice, milliseconds in row.items()}
        for layer_id, row in table.items()
    }, fixed
