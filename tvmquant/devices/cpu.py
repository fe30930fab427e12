"""The processor of this machine, through TVM's runtime alone."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.devices import runtime
from tvmquant.devices.host import (
    host_features,
    physical_cores,
    processor_name,
    usable_processors,
)

logger = logging.getLogger(__name__)

# TVM's kernels assume that tensors start at a multiple of this
ALIGNMENT = 64
# The runtime's ``kDLCPU`` and its pooling allocator
_CPU, _POOLED = 1, 2


class CpuDevice:
    """The processor of this machine, as `tvmquant.devices.device.Device`.

    Tensors share the memory of arrays that are aligned and contiguous.
    """

    @property
    def name(self) -> str:
        """Of the processor."""
        return processor_name()

    def architecture(self) -> str:
        """Return what `platform.machine` says."""
        return platform.machine()

    def features(self) -> frozenset[str]:
        """Return the processor's features; empty where the system does not tell."""
        return host_features()

    def cores(self) -> int:
        """Return the physical cores that this process may use."""
        return physical_cores()

    def use_threads(self, threads: int) -> None:
        """Let TVM compute with ``threads`` threads; one setting per process."""
        _use_threads(threads)

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        """Return a tensor that shares the array's memory, or that of a copy which is aligned."""
        in_place = array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0
        if not (in_place and array.flags.writeable):
            array = _aligned_copy(array)
        return runtime.interface().from_dlpack(array)

    def arrays(self, outputs: Any) -> list[npt.NDArray[Any]]:
        """Return the outputs in place."""
        tensors = [outputs] if hasattr(outputs, "__dlpack__") else outputs
        return [np.from_dlpack(tensor) for tensor in tensors]

    def load(self, library: Path) -> CpuProgram:
        """Load a library; errors as of `tvmquant.devices.device.Device.load`."""
        return CpuProgram(library)


class CpuProgram:
    """A library in this process.

    Parameters
    ----------
    library : Path
    """

    def __init__(self, library: Path) -> None:
        self._library = library
        self._machine = _virtual_machine(library)
        self._probe: Any = None

    def runner(self, entry: str, inputs: Sequence[Any]) -> Callable[[], Any]:
        """Return a function that runs an entry on tensors."""
        function = self._machine[entry]
        return lambda: function(*inputs)

    def kernel_seconds(
        self, entry: str, inputs: Sequence[Any], kernels: Collection[str], repeats: int
    ) -> list[list[float]]:
        """Return the seconds of every call of known kernels; adds about a microsecond to each."""
        clock = _KernelClock(frozenset(kernels))
        runs = []
        for _ in range(repeats):
            clock.seconds = []
            self.watch(clock, entry, inputs)
            runs.append(clock.seconds)
        return runs

    def watch(self, instrument: Callable[..., int], entry: str, inputs: Sequence[Any]) -> None:
        """Run once with an instrument, as TVM's virtual machine calls it around every call."""
        if self._probe is None:  # the first machine could not be rid of it again
            self._probe = _virtual_machine(self._library)
        self._probe["set_instrument"](instrument)
        self._probe[entry](*inputs)


class _KernelClock:
    """Instrument of the virtual machine that times the calls of known kernels."""

    def __init__(self, kernels: frozenset[str]) -> None:
        self.kernels = kernels
        self.seconds: list[float] = []
        self._started = 0.0

    def __call__(self, _func: Any, name: str, before: bool, _ret: Any, *_args: Any) -> int:
        if before:
            self._started = time.perf_counter()
        elif str(name) in self.kernels:
            self.seconds.append(time.perf_counter() - self._started)
        return 0


def _virtual_machine(library: Path) -> Any:
    """Load a library and return a virtual machine for its code: its functions by name.

    Raises
    ------
    OSError, RuntimeError, ValueError
        If the library is not one that TVM wrote, or is damaged.
    """
    # The dynamic linker takes a path it has seen for the same library, even after a new
    # build; under a name of its own it looks at the file.
    with tempfile.TemporaryDirectory(prefix="tvmquant.") as scratch:
        fresh = Path(scratch, library.name)
        try:
            fresh.hardlink_to(library)
        except OSError:  # another file system
            shutil.copyfile(library, fresh)
        machine = runtime.interface().load_module(str(fresh))["vm_load_executable"]()
    machine["vm_initialization"](_CPU, 0, _POOLED)
    return machine


def _aligned_copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


# What `_use_threads` set up last.
_configured = 0


def _use_threads(threads: int) -> None:
    """Let TVM compute with ``threads`` threads.

    The pool is made once per process, by default for half the processors of an x86 machine (one
    of two); the environment variable says otherwise if it is set before.
    """
    global _configured
    function = runtime.interface().get_global_func
    count_threads = function("runtime.NumThreads")
    if _configured == threads == int(count_threads()):
        return  # after a few more times this process would compute up to 1.2 times slower
    available = usable_processors() or threads
    os.environ.setdefault("TVM_NUM_THREADS", str(max(threads, available)))
    # mode 0: one thread on each of the big cores, up to the given number
    function("runtime.config_threadpool")(0, threads)
    _configured, used = threads, int(count_threads())
    if used < threads:
        logger.warning(
            "TVM computes with %d of %d threads: its pool was made before, or TVM_NUM_THREADS is "
            "set to less",
            used,
            threads,
        )
