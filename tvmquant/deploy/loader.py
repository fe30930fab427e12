"""Load a built library and run it. Needs TVM's runtime and numpy, no compiler.

Where it runs is a `tvmquant.devices.device.Device`, by default the processor of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.deploy.manifest import (
    LIBRARY_NAME,
    LayerInfo,
    Manifest,
    TensorInfo,
    file_sha256,
)
from tvmquant.devices import runtime
from tvmquant.devices.cpu import CpuDevice
from tvmquant.devices.device import Device, Program, missing_features
from tvmquant.errors import ArtifactError, DataError
from tvmquant.target import MAX_THREADS, architecture_of


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
    device : Device, optional
        Where to run; default: the processor of this machine.
    width : int, optional
        Bit width of the network, of a library that has several; default: the widest.

    Raises
    ------
    ArtifactError
        If the folder is incomplete, damaged, of another version or for another processor, or the
        library has no such width.

    Examples
    --------
    >>> model = tvmquant.load("resnet50-int8")          # doctest: +SKIP
    >>> logits = model(images)                          # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        threads: int | None = None,
        raw: bool = False,
        device: Device | None = None,
        width: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder).at(width)
        self.raw = raw
        if raw and not self.manifest.has_raw:
            raise ArtifactError(
                f"{self.folder}: has no raw integer entry, because its first or last operator "
                "stayed float; see the float audit of `tvmquant inspect`"
            )
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise ArtifactError(f"threads = {threads}; expected 1 to {MAX_THREADS}")
        self.device: Device = device or CpuDevice()
        built_for = self.manifest.threads
        self.threads = threads or min(built_for, self.device.cores() or built_for)
        if reason := obstacle(self.manifest, self.device):
            raise ArtifactError(reason)
        library = _check_library(self.folder, self.manifest)
        self._program = _load(library, self.manifest, self.threads, self.device)
        self._entry = self.manifest.entry("raw" if raw else "main")

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
        outputs = self.device.arrays(self.bind(*inputs)())
        return outputs[0] if len(self.outputs) == 1 else tuple(outputs)

    def bind(self, *inputs: Any) -> Callable[[], Any]:
        """Return a function without arguments that runs the network on ``inputs`` once.

        For timing: checks and conversions happen here, once. The function returns what
        `Device.arrays` reads; `tvmquant.devices.device.seconds_of` times it.
        """
        return self._program.runner(self._entry, self._tensors(inputs))

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
        kernels = {layer.kernel for layer in self.manifest.layers}
        runs = self._program.kernel_seconds(
            self._entry, self._tensors(inputs), kernels, repeats + 1
        )
        medians = np.median(np.asarray(runs[1:]), axis=0)
        layers = self.manifest.layers
        if self.raw:  # without the kernels that quantize the inputs and dequantize the outputs
            quantizes = sum(info.dtype != info.raw_dtype for info in self.inputs)
            layers = layers[quantizes : len(layers) - len(self.outputs)]
        return [(layer, float(s)) for layer, s in zip(layers, medians, strict=True)]

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
        return self.device.tensor(array)


def obstacle(manifest: Manifest, device: Device) -> str | None:
    """Return why a library is not for a device, and what to do; None where it is."""
    machine = device.architecture()
    if machine and architecture_of(manifest.target["triple"]) != architecture_of(machine):
        return (
            f"this processor is {machine}, the library was compiled for "
            f"{manifest.target['triple']}; build again with --target native on this machine"
        )
    if missing := missing_features(device, manifest.target["features"]):
        return (
            f"the processor {device.name} lacks {', '.join(missing)}, which the library was "
            f"compiled for ({manifest.target['config']}); build again with --target native on this "
            "machine, or for an older processor"
        )
    return None


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


def _load(library: Path, manifest: Manifest, threads: int, device: Device) -> Program:
    built_with, present = manifest.versions["tvm"], runtime.version()
    if present.split(".")[:2] != built_with.split(".")[:2]:
        raise ArtifactError(
            f"{library}: built with TVM {built_with}, this is TVM {present}; "
            "install that version or build the model again"
        )
    device.use_threads(threads)
    try:
        return device.load(library)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{library}: cannot be loaded: {reason}; build again") from None


def load(
    folder: str | os.PathLike[str],
    *,
    threads: int | None = None,
    raw: bool = False,
    device: Device | None = None,
    width: int | None = None,
) -> Model:
    """Load a built library; see `Model`."""
    return Model(folder, threads=threads, raw=raw, device=device, width=width)
