"""What tvmquant asks of a device: memory, copies, threads, loading, timing, and its features."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tvmquant.devices.host import CPUINFO_NAMES

if TYPE_CHECKING:
    import numpy.typing as npt

# Runs something once.
Runner = Callable[[], object]


@runtime_checkable
class TimedRunner(Protocol):
    """A runner that a clock of its own times: what it starts runs elsewhere."""

    def __call__(self) -> object:
        """Run once."""

    def seconds(self) -> float:
        """Run, and return how long it took there."""


def seconds_of(run: Runner) -> float:
    """Run once and return the seconds that it took, by its device's clock if it has one."""
    if isinstance(run, TimedRunner):
        return run.seconds()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Program(Protocol):
    """A library on a device, ready to run."""

    def runner(self, entry: str, inputs: Sequence[Any]) -> Callable[[], Any]:
        """Return a function that runs an entry on tensors of the device and returns its outputs.

        The function ends when the device has finished; it may be a `TimedRunner`.
        """

    def kernel_seconds(
        self, entry: str, inputs: Sequence[Any], kernels: Collection[str], repeats: int
    ) -> list[list[float]]:
        """Return for each of several runs the seconds of every call of known kernels, in order."""


class Device(Protocol):
    """Where code runs."""

    @property
    def name(self) -> str:
        """As records of measurements name it."""

    def architecture(self) -> str:
        """Return the architecture by the name `platform.machine` has for it; "" if unknown."""

    def features(self) -> frozenset[str]:
        """Return the processor's features as Linux names them; empty where it cannot tell."""

    def cores(self) -> int | None:
        """Return the physical cores that code may use; None where it cannot tell."""

    def use_threads(self, threads: int) -> None:
        """Compute with so many threads from now on."""

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        """Return a tensor of the device that holds an array's values, and may share its memory."""

    def arrays(self, outputs: Any) -> list[npt.NDArray[Any]]:
        """Return what a program's runner returned as arrays, which may share its memory."""

    def load(self, library: Path) -> Program:
        """Load a library.

        Raises
        ------
        OSError, RuntimeError, ValueError
            If the device cannot load it.
        """


def missing_features(device: Device, needed: Sequence[str]) -> list[str]:
    """Return those of the features, as LLVM names them, that a device is known to lack."""
    present = device.features()
    return [name for name in needed if present and CPUINFO_NAMES.get(name, name) not in present]
