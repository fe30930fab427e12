"""What the process that holds a session with a device executes: one call of `RpcDevice` each.

A process of its own, because a device that falls silent blocks whoever waits for it. The device
needs TVM's runtime alone; what that lacks is in a small library that is sent first
(`tvmquant.devices.probe`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.devices.probe import CLOCK, CPUINFO, INSTRUMENT, SECONDS
from tvmquant.devices.timing import processor_of, timed
from tvmquant.devices.tracker import Tracker

# The runtime's ``kDLCPU`` and its pooling allocator
_CPU, _POOLED = 1, 2
# Runs the entry whose inputs are set, as TVM's virtual machine calls it.
_INVOKE = "invoke_stateful"


class _Program:
    """A library on the device: a virtual machine, and a second one with an instrument."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.machine = self._start()
        self._watched: Any = None

    def _start(self) -> Any:
        machine = self._module["vm_load_executable"]()
        machine["vm_initialization"](_CPU, 0, _POOLED)
        return machine

    @property
    def watched(self) -> Any:
        if self._watched is None:  # an instrument cannot be taken away again
            self._watched = self._start()
            self._watched["set_instrument"](INSTRUMENT)
        return self._watched


_session: Any = None
_probe: Any = None
_programs: list[_Program] = []


def open_session(tracker: Tracker, session_seconds: int, probe: str) -> None:
    """Wait for a device and send it the probe."""
    global _session, _probe
    # the parent is interrupted too, and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _session = tracker.request(session_seconds)
    _probe = _sent(probe)


def answers() -> bool:
    """Whether the device still answers."""
    try:
        _session.get_function("runtime.NumThreads")()
    except Exception:  # whatever a broken connection raises
        return False
    return True


def cpuinfo() -> str:
    """Return Linux's description of the processor; empty where there is none."""
    return str(_probe[CPUINFO]())


def use_threads(threads: int) -> int:
    """Let TVM compute with so many threads; return how many it uses."""
    _session.get_function("runtime.config_threadpool")(0, threads)
    return int(_session.get_function("runtime.NumThreads")())


def load(library: str) -> int:
    """Send and load a library; return its number."""
    _programs.append(_Program(_sent(library)))
    return len(_programs) - 1


def set_inputs(program: int, entry: str, arrays: Sequence[npt.NDArray[Any]]) -> None:
    """Copy the inputs of an entry to the device."""
    _set_inputs(_programs[program].machine, entry, arrays)


def run(program: int, entry: str) -> list[npt.NDArray[Any]]:
    """Run an entry and return its outputs."""
    machine = _programs[program].machine
    machine[_INVOKE](entry)
    count = int(machine["get_output_arity"](entry))
    if count < 0:  # one tensor, and no tuple
        return [machine["get_output"](entry).numpy()]
    return [machine["get_output"](entry, index).numpy() for index in range(count)]


def seconds(program: int, entry: str) -> float:
    """Run an entry twice and return how long the second run took, by the device's clock."""
    return timed(_programs[program].machine, _INVOKE, processor_of(_session))(entry)[0]


def kernel_seconds(
    program: int,
    entry: str,
    arrays: Sequence[npt.NDArray[Any]],
    kernels: Collection[str],
    repeats: int,
) -> list[list[float]]:
    """Return for each run the seconds of every call of known kernels, by the device's clock."""
    _probe[CLOCK]("\n".join(sorted(kernels)))
    machine = _programs[program].watched
    _set_inputs(machine, entry, arrays)
    runs = []
    for _ in range(repeats):
        machine[_INVOKE](entry)
        runs.append(np.frombuffer(bytes(_probe[SECONDS]()), np.float64).tolist())
    return runs


def _sent(library: str) -> Any:
    name = f"{len(_programs)}-{os.path.basename(library)}"
    _session.upload(library, name)
    module = _session.load_module(name)
    _session.remove(name)
    return module


def _set_inputs(machine: Any, entry: str, arrays: Sequence[npt.NDArray[Any]]) -> None:
    import tvm

    device = processor_of(_session)
    machine["set_input"](entry, *(tvm.runtime.tensor(array, device) for array in arrays))
