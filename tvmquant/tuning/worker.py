"""What the worker processes of tuning execute: one kernel is built, or measured."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.devices.timing import processor_of, timed
from tvmquant.devices.tracker import Tracker
from tvmquant.machine import Machine

# Type and shape of each argument of a kernel, the output last.
Arguments = list[tuple[str, tuple[int, ...]]]

ENTRY = "main"
# The least so many times shall lie within this share of the least; else up to so many rounds more.
AGREEING = 4
AGREEMENT = 0.01
ROUNDS = 5


def prepare_builder() -> None:
    """Import what building needs, once per process."""
    # the parent is interrupted too, and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from tvmquant.schedules import families as families


def prepare_runner(threads: int) -> None:
    """Let TVM compute with ``threads`` threads in this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # read when TVM makes its pool, which is at the first kernel that runs in parallel
    os.environ["TVM_NUM_THREADS"] = str(threads)


def build_kernel(
    family: str, spec: Any, tiling: Any, machine: Machine, linker: str | None, path: str
) -> Arguments:
    """Schedule, compile and link one kernel into a shared library.

    Parameters
    ----------
    family, spec, tiling
        As of `tvmquant.schedules.families`.
    machine : Machine
        What to compile for.
    linker : str, optional
        Cross compiler; None for this machine's own.
    path : str
        File to write.
    """
    import tvm
    from tvm.support import cc

    from tvmquant.schedules import families

    kernel = families.kernels(family).kernel(spec, tiling)
    module = tvm.IRModule({ENTRY: kernel.with_attr("global_symbol", ENTRY)})
    link = {"fcompile": cc.cross_compiler(linker)} if linker else {}
    tvm.compile(module, target=machine.target).export_library(path, **link)
    return [(str(p.ty.dtype), tuple(int(extent) for extent in p.ty.shape)) for p in kernel.params]


def fill(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return an argument of a kernel.

    The time of integer kernels does not depend on values, but shifts must be valid: 32- and 64-bit
    integers (bias, multiplier, offset, shift) are within 1..19, and bytes are multiples of 16,
    which are where the rows of a table begin.
    """
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    if dtype in ("int32", "int64"):
        return rng.integers(1, 20, shape).astype(dtype)
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -128), min(limits.max, 255)
    values = rng.integers(low, high + 1, shape)
    return (values & ~15 if dtype == "uint8" else values).astype(dtype)


def allocate(device: Any, arguments: Any, repeat: int) -> list[list[Any]]:
    """Return ``repeat`` lists of arguments on a device; what MetaSchedule's runner calls."""
    return _allocate(device, [(dtype, tuple(shape)) for _, dtype, shape in arguments], repeat)


def _allocate(device: Any, arguments: Arguments, repeat: int) -> list[list[Any]]:
    import tvm

    rng = np.random.default_rng(0)
    arrays = [fill(dtype, shape, rng) for dtype, shape in arguments]
    return [[tvm.runtime.tensor(array, device) for array in arrays] for _ in range(repeat)]


def evaluate(module: Any, device: Any, config: Any, arguments: list[list[Any]]) -> list[float]:
    """Return the mean seconds of a call for every repeat.

    Repeats until the least times agree (`settled`), so that other processes, which now and then
    take a processor away, cost time and not accuracy; at most `ROUNDS` rounds.
    """
    seconds = timed(
        module, ENTRY, device, number=config.number, repeat=config.repeat,
        min_repeat_ms=config.min_repeat_ms,
    )  # fmt: skip
    found: list[float] = []
    for _ in range(ROUNDS):
        found += [s for values in arguments for s in seconds(*values)]
        if settled(found):
            break
    return found


def settled(seconds: list[float]) -> bool:
    """Whether the least of some times is confirmed by others within `AGREEMENT`."""
    least = sorted(seconds)[:AGREEING]
    return len(least) == AGREEING and least[-1] <= least[0] * (1 + AGREEMENT)


def evaluate_local(
    threads: int, module: Any, device: Any, config: Any, arguments: list[list[Any]]
) -> list[float]:
    """Return `evaluate` of a module in this process."""
    import tvm

    _check_threads(int(tvm.get_global_func("runtime.NumThreads")()), threads)
    return evaluate(module, device, config, arguments)


def run_on_device(
    tracker: Tracker, session_seconds: int, threads: int, config: Any, allocations: int, path: str,
    arguments: Arguments,
) -> list[float]:  # fmt: skip
    """Upload a kernel to the first device that is free, and return `evaluate` of it there."""
    session = tracker.request(session_seconds)
    session.get_function("runtime.config_threadpool")(0, threads)
    _check_threads(int(session.get_function("runtime.NumThreads")()), threads)
    name = os.path.basename(path)
    session.upload(path, name)
    try:
        device = processor_of(session)
        values = _allocate(device, arguments, allocations)
        return evaluate(session.load_module(name), device, config, values)
    finally:
        session.remove(name)


def _check_threads(used: int, wanted: int) -> None:
    if used != wanted:
        raise RuntimeError(
            f"TVM computes with {used} threads there instead of {wanted}; set TVM_NUM_THREADS for "
            "the process that measures, or tune for fewer threads"
        )
