"""Build kernels in worker processes and time them, here or on the devices of an RPC tracker.

What LLVM aborts or what crashes costs its worker process and one candidate. Building uses TVM's
process pool directly: MetaSchedule's ``LocalBuilder`` starts new processes for every batch, which
took 3.2 of 4.0 s for 8 kernels, and schedules in the parent. Timing here uses MetaSchedule's
``LocalRunner`` with arguments and evaluation of our own (`tvmquant.tuning.worker`), timing on
devices the pool again: ``RPCRunner`` waits without limit for a device that falls silent.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tvm.s_tir.meta_schedule.arg_info import TensorInfo
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, LocalRunner
from tvm.s_tir.meta_schedule.runner.runner import RunnerInput
from tvm.support.popen_pool import PopenPoolExecutor

from tvmquant.deploy.compiler import find_linker
from tvmquant.devices.host import processor_name
from tvmquant.devices.tracker import Tracker, last_line
from tvmquant.errors import DeviceError
from tvmquant.machine import Machine
from tvmquant.tuning import worker
from tvmquant.tuning.workload import Workload

BUILD_SECONDS = 60
RUN_SECONDS = 60
# LLVM's memory grows in a process that compiles again and again.
BUILDS_PER_PROCESS = 200
# Each repeat averages calls for at least so long; the least of 16 repeats varies by 1 % or less
# between runs, where neither the machine nor the buffers' places disturb all of them.
REPEATS = 8
REPEAT_MS = 4
ALLOCATIONS = 2


@dataclass(frozen=True)
class Candidate:
    """A kernel to build and measure."""

    workload: Workload
    tiling: Any


@dataclass(frozen=True)
class Artifact:
    """A built kernel.

    Parameters
    ----------
    path : Path
        Shared library.
    arguments : list of (dtype, shape)
    """

    path: Path
    arguments: worker.Arguments


@dataclass(frozen=True)
class Outcome:
    """How measuring ended.

    Parameters
    ----------
    seconds : tuple of float
        Mean time of a call for every repeat; empty where it failed.
    error : str, optional
        Why.
    """

    seconds: tuple[float, ...] = ()
    error: str | None = None

    def statistics(self) -> dict[str, Any]:
        """Return the fields of a `Record` that say how it went."""
        if not self.seconds:
            return {"error": self.error or "no times were returned"}
        median = statistics.median(self.seconds)
        quartiles = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else [0, 0, 0]
        return {
            "seconds": min(self.seconds),
            "median": median,
            "spread": (quartiles[2] - quartiles[0]) / median,
            "repeats": len(self.seconds),
        }


class Runner(Protocol):
    """What times built kernels."""

    @property
    def cpu(self) -> str:
        """What is measured, as records name it."""

    def measure(self, artifacts: Sequence[Artifact]) -> Iterator[tuple[int, Outcome]]:
        """Time kernels and yield (index, outcome) of each as soon as it is known."""

    def close(self) -> None:
        """End the processes."""


class KernelBuilder:
    """Build kernels in worker processes.

    Parameters
    ----------
    machine : Machine
    workers : int
        Processes that build at the same time.
    timeout : float
        Seconds after which a build has failed.
    """

    def __init__(self, machine: Machine, workers: int = 2, timeout: float = BUILD_SECONDS) -> None:
        self._machine = machine
        self._linker = find_linker(machine.target)
        self._timeout = timeout
        self._folder = Path(tempfile.mkdtemp(prefix="tvmquant-tune."))
        self._names = itertools.count()
        self._pool = PopenPoolExecutor(
            max_workers=workers,
            timeout=timeout,
            initializer=worker.prepare_builder,
            maximum_process_uses=BUILDS_PER_PROCESS,
            stderr=subprocess.DEVNULL,
        )

    def build(self, candidates: Sequence[Candidate]) -> list[Artifact | Outcome]:
        """Build kernels; return for each the artefact, or the outcome that says why there is none.

        The artefacts of earlier calls are deleted.
        """
        for old in self._folder.iterdir():
            old.unlink()
        # names never repeat, because devices and the dynamic linker remember them
        paths = [self._folder / f"kernel{next(self._names)}.so" for _ in candidates]
        futures = [
            self._pool.submit(
                worker.build_kernel, c.workload.family, c.workload.spec, c.tiling, self._machine,
                self._linker, str(path),
            )
            for c, path in zip(candidates, paths, strict=True)
        ]  # fmt: skip
        return [self._result(f, path) for f, path in zip(futures, paths, strict=True)]

    def _result(self, future: concurrent.futures.Future[Any], path: Path) -> Artifact | Outcome:
        try:
            return Artifact(path, future.result())
        except TimeoutError:
            return Outcome(error=f"building took more than {self._timeout:g} s")
        except ChildProcessError:
            return Outcome(error="the compiler died, as when it cannot select an instruction")
        except Exception as error:  # whatever a candidate raises costs only that candidate
            return Outcome(error=f"building failed: {last_line(error)}")

    def close(self) -> None:
        """End the processes and delete the artefacts."""
        self._pool.shutdown(wait=False)
        shutil.rmtree(self._folder, ignore_errors=True)


class HostRunner:
    """Time kernels on this machine, one after the other, in a worker process.

    Parameters
    ----------
    threads : int
    """

    def __init__(self, threads: int) -> None:
        self.cpu = processor_name()
        self._runner = LocalRunner(
            timeout_sec=RUN_SECONDS,
            evaluator_config=_EVALUATION,
            alloc_repeat=ALLOCATIONS,
            f_alloc_argument=worker.allocate,
            f_run_evaluator=functools.partial(worker.evaluate_local, threads),
            initializer=functools.partial(worker.prepare_runner, threads),
        )

    def measure(self, artifacts: Sequence[Artifact]) -> Iterator[tuple[int, Outcome]]:
        """Time kernels and yield (index, outcome) of each as soon as it is known."""
        for index, artifact in enumerate(artifacts):
            (future,) = self._runner.run([_runner_input(artifact)])
            yield index, _outcome(future.result())

    def close(self) -> None:
        """End the process."""
        self._runner.pool.shutdown(wait=False)


class DeviceRunner:
    """Time kernels on all devices that a tracker holds under a key, at the same time.

    A kernel that fails is tried once more, because a device may have been lost; the tracker gives
    it to whichever is free then.

    Parameters
    ----------
    tracker : Tracker
    threads : int
    session_seconds : int
        Longest time of one measurement on a device.

    Raises
    ------
    DeviceError
        If the tracker does not answer, or holds no device under the key.
    """

    def __init__(self, tracker: Tracker, threads: int, session_seconds: int = RUN_SECONDS) -> None:
        self.cpu = tracker.name
        self._tracker = tracker
        self._session_seconds = session_seconds
        self._threads = threads
        self._pool: PopenPoolExecutor | None = None
        tracker.devices()

    def measure(self, artifacts: Sequence[Artifact]) -> Iterator[tuple[int, Outcome]]:
        """Time kernels and yield (index, outcome) of each as soon as it is known.

        Raises
        ------
        DeviceError
            If a kernel failed twice and the tracker or its last device is gone.
        """
        running = {self._submit(artifact): i for i, artifact in enumerate(artifacts)}
        tried_again: set[int] = set()
        while running:
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                index = running.pop(future)
                outcome = self._result(future)
                if outcome.error is None:
                    yield index, outcome
                    continue
                self._check_alive(outcome.error)
                if index in tried_again:
                    yield index, outcome
                else:
                    tried_again.add(index)
                    running[self._submit(artifacts[index])] = index

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def _submit(self, artifact: Artifact) -> concurrent.futures.Future[Any]:
        if self._pool is None:
            limit = self._tracker.wait_seconds + self._session_seconds
            self._pool = PopenPoolExecutor(
                max_workers=self._tracker.devices(),
                timeout=limit,
                initializer=worker.prepare_builder,
                stderr=subprocess.DEVNULL,
            )
        future: concurrent.futures.Future[Any] = self._pool.submit(
            worker.run_on_device, self._tracker, self._session_seconds, self._threads, _EVALUATION,
            ALLOCATIONS, str(artifact.path), artifact.arguments,
        )  # fmt: skip
        return future

    def _result(self, future: concurrent.futures.Future[Any]) -> Outcome:
        try:
            return Outcome(tuple(future.result()))
        except TimeoutError:
            return Outcome(error="no device was free, or it fell silent")
        except Exception as error:  # whatever a candidate raises costs only that candidate
            return Outcome(error=f"running failed: {last_line(error)}")

    def _check_alive(self, error: str) -> None:
        """Raise where the failure is that of the devices and not of the kernel."""
        try:
            self._tracker.devices()
        except DeviceError as lost:
            self.close()
            raise DeviceError(f"{lost}; measuring failed with: {error}") from None


_EVALUATION = EvaluatorConfig(number=1, repeat=REPEATS, min_repeat_ms=REPEAT_MS)


def _runner_input(artifact: Artifact) -> RunnerInput:
    arguments = [TensorInfo(dtype, shape) for dtype, shape in artifact.arguments]
    return RunnerInput(str(artifact.path), "cpu", arguments)


def _outcome(result: Any) -> Outcome:
    if result.error_msg is not None:
        return Outcome(error=f"running failed: {last_line(result.error_msg)}")
    return Outcome(tuple(float(s) for s in result.run_secs))
