"""Load a built library and run it. Needs TVM's runtime and numpy, no compiler."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.deploy import runtime
from tvmquant.deploy.manifest import (
    LIBRARY_NAME,
    LayerInfo,
    Manifest,
    TensorInfo,
    file_sha256,
)
from tvmquant.errors import ArtifactError, DataError
from tvmquant.target import (
    CPUINFO_NAMES,
    MAX_THREADS,
    architecture_of,
    host_features,
    physical_cores,
)

logger = logging.getLogger(__name__)

# TVM's kernels assume that tensors start at a multiple of this
ALIGNMENT = 64


class Model:
    """A loaded library.

    Parameters
    ----------
    folder : path
        What `tvmquant.build` wrote.
    threads : int, optional
        Threads that compute, at most `MAX_THREADS`; default: those the library was built for, but
        no more than the physical cores that this process may use. One setting per process.
    raw : bool
        Take and return raw integers instead of the model's types, in the layouts that the manifest
        says (channels last).

    Raises
    ------
    ArtifactError
        If the folder is incomplete, damaged, of another version or for another processor.

    Examples
    --------
    >>> model = tvmquant.load("resnet50-int8")          # doctest: +SKIP
    >>> logits = model(images)                          # doctest: +SKIP
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, threads: int | None = None, raw: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.raw = raw
        if raw and not self.manifest.has_raw:
            raise ArtifactError(
                f"{self.folder}: has no raw integer entry, because its first or last operator "
                "stayed float; see the float audit of `tvmquant inspect`"
            )
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise ArtifactError(f"threads = {threads}; expected 1 to {MAX_THREADS}")
        self.threads = threads or min(self.manifest.threads, physical_cores())
        _check_processor(self.manifest)
        library = _check_library(self.folder, self.manifest)
        self._machine = _virtual_machine(library, self.manifest, self.threads)
        self._probe: Any = None
        self._entry = self._machine["raw" if raw else "main"]

    @property
    def inputs(self) -> list[TensorInfo]:
        """Inputs, in calling order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> list[TensorInfo]:
        """Outputs, in order."""
        return self.manifest.outputs

    def __call__(self, *inputs: Any) -> npt.NDArray[Any] | tuple[npt.NDArray[Any], ...]:
        """Run the network.

        Parameters
        ----------
        *inputs : numpy arrays or DLPack tensors
            One per input. Aligned, contiguous arrays are used in place, others are copied.

        Returns
        -------
        array, or tuple of arrays where the network has several outputs

        Raises
        ------
        DataError
            If the number, shape or type of the inputs is not what the library takes.
        """
        result = self._entry(*self._tensors(inputs))
        if hasattr(result, "__dlpack__"):
            return np.from_dlpack(result)
        return tuple(np.from_dlpack(item) for item in result)

    def bind(self, *inputs: Any) -> Any:
        """Return a function without arguments that runs the network on ``inputs`` once.

        For timing: checks and conversions happen here, once. The function returns what
        `numpy.from_dlpack` reads, or a sequence of such where the network has several outputs.
        """
        tensors = self._tensors(inputs)
        entry = self._entry
        return lambda: entry(*tensors)

    def profile(self, *inputs: Any, repeats: int = 20) -> list[tuple[LayerInfo, float]]:
        """Time every kernel call.

        Parameters
        ----------
        *inputs
            As in calling the model.
        repeats : int
            Runs, after one warm-up; the median of each call is kept.

        Returns
        -------
        list of (LayerInfo, seconds) in execution order
            Instrumentation adds about a microsecond to each call.
        """
        tensors = self._tensors(inputs)
        clock = _KernelClock({layer.kernel for layer in self.manifest.layers})
        runs: list[list[float]] = []
        machine = self._probed()
        machine["set_instrument"](clock)
        entry = machine["raw" if self.raw else "main"]
        for _ in range(repeats + 1):
            clock.seconds = []
            entry(*tensors)
            runs.append(clock.seconds)
        medians = np.median(np.asarray(runs[1:]), axis=0)
        layers = self.manifest.layers
        if self.raw:  # without the kernels that quantize the inputs and dequantize the outputs
            quantizes = sum(info.dtype != info.raw_dtype for info in self.inputs)
            layers = layers[quantizes : len(layers) - len(self.outputs)]
        return [(layer, float(s)) for layer, s in zip(layers, medians, strict=True)]

    def call_bytes(self, *inputs: Any) -> list[int]:
        """Return the size of the operands and results of every kernel call, in bytes.

        Parameters
        ----------
        *inputs
            As in calling the model.

        Returns
        -------
        list of int
            In the order of `profile`.
        """
        tensors = self._tensors(inputs)
        scale = _KernelScale({layer.kernel for layer in self.manifest.layers})
        machine = self._probed()
        machine["set_instrument"](scale)
        machine["raw" if self.raw else "main"](*tensors)
        return scale.bytes

    def _probed(self) -> Any:
        """Return a second virtual machine, for instruments: no first one could be rid of them."""
        if self._probe is None:
            self._probe = _virtual_machine(self.folder / LIBRARY_NAME, self.manifest, self.threads)
        return self._probe

    def _tensors(self, inputs: Sequence[Any]) -> list[Any]:
        if len(inputs) != len(self.inputs):
            names = ", ".join(t.name for t in self.inputs)
            raise DataError(f"found {len(inputs)} inputs; expected {len(self.inputs)}: {names}")
        return [self._tensor(x, info) for x, info in zip(inputs, self.inputs, strict=True)]

    def _tensor(self, x: Any, info: TensorInfo) -> Any:
        shape = info.raw_shape if self.raw else info.shape
        dtype = info.raw_dtype if self.raw else info.dtype
        try:
            array = x if isinstance(x, np.ndarray) else np.from_dlpack(x)
        except (AttributeError, BufferError, RuntimeError, TypeError) as error:
            raise DataError(
                f"input {info.name!r} is a {type(x).__name__} that cannot be read ({error}); "
                f"expected a NumPy array or a DLPack tensor of {dtype} {tuple(shape)}"
            ) from None
        if list(array.shape) != list(shape) or str(array.dtype) != dtype:
            raise DataError(
                f"input {info.name!r} is {array.dtype} {tuple(array.shape)}; "
                f"expected {dtype} {tuple(shape)}"
            )
        in_place = array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0
        if not (in_place and array.flags.writeable):
            array = _aligned_copy(array)
        return runtime.interface().from_dlpack(array)


def _aligned_copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class _KernelScale:
    """Instrument of the virtual machine that weighs the calls of known kernels."""

    def __init__(self, kernels: set[str]) -> None:
        self.kernels = kernels
        self.bytes: list[int] = []

    def __call__(self, _func: Any, name: str, before: bool, _ret: Any, *args: Any) -> int:
        if before and str(name) in self.kernels:
            tensors = [arg for arg in args if hasattr(arg, "__dlpack__")]
            self.bytes.append(sum(np.from_dlpack(tensor).nbytes for tensor in tensors))
        return 0


class _KernelClock:
    """Instrument of the virtual machine that times the calls of known kernels."""

    def __init__(self, kernels: set[str]) -> None:
        self.kernels = kernels
        self.seconds: list[float] = []
        self._started = 0.0

    def __call__(self, _func: Any, name: str, before: bool, _ret: Any, *_args: Any) -> int:
        if before:
            self._started = time.perf_counter()
        elif str(name) in self.kernels:
            self.seconds.append(time.perf_counter() - self._started)
        return 0


def _check_processor(manifest: Manifest) -> None:
    machine = platform.machine()
    if architecture_of(manifest.target["triple"]) != architecture_of(machine):
        raise ArtifactError(
            f"this processor is {machine}, the library was compiled for "
            f"{manifest.target['triple']}; build again with --target native on this machine"
        )
    present = host_features()
    needed = manifest.target["features"]
    missing = [f for f in needed if CPUINFO_NAMES.get(f, f) not in present]
    if present and missing:
        raise ArtifactError(
            f"this processor lacks {', '.join(missing)}, which the library was compiled for "
            f"({manifest.target['config']}); build again with --target native on this machine, "
            "or for an older processor"
        )


def _check_library(folder: Path, manifest: Manifest) -> Path:
    library = folder / LIBRARY_NAME
    if not library.is_file():
        raise ArtifactError(f"{folder}: holds no {LIBRARY_NAME}; build the model again")
    found = file_sha256(library)
    if found != manifest.library["sha256"]:
        raise ArtifactError(
            f"{library}: SHA-256 is {found[:16]}..., the manifest says "
            f"{manifest.library['sha256'][:16]}...; the file was changed, build again"
        )
    return library


def _virtual_machine(library: Path, manifest: Manifest, threads: int) -> Any:
    built_with, present = manifest.versions["tvm"], runtime.version()
    if present.split(".")[:2] != built_with.split(".")[:2]:
        raise ArtifactError(
            f"{library}: built with TVM {built_with}, this is TVM {present}; "
            "install that version or build the model again"
        )
    _use_threads(threads)
    try:
        # The dynamic linker takes a path it has seen for the same library, even after a new
        # build; under a name of its own it looks at the file.
        with tempfile.TemporaryDirectory(prefix="tvmquant.") as scratch:
            fresh = Path(scratch, LIBRARY_NAME)
            try:
                fresh.hardlink_to(library)
            except OSError:  # another file system
                shutil.copyfile(library, fresh)
            return runtime.virtual_machine(fresh)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{library}: cannot be loaded: {reason}; build again") from None


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
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
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


def load(folder: str | os.PathLike[str], *, threads: int | None = None, raw: bool = False) -> Model:
    """Load a built library; see `Model`."""
    return Model(folder, threads=threads, raw=raw)
