"""A device that is reached over TVM's RPC: code is built here, and runs and is timed there."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.devices import rpc_worker
from tvmquant.devices.host import features_in
from tvmquant.devices.tracker import Tracker, last_line
from tvmquant.errors import DeviceError

logger = logging.getLogger(__name__)

# The device ends a session after so long: whoever opened it may be gone without a word.
SESSION_SECONDS = 3600
# Longest time of one call, such as sending a library or running a network.
CALL_SECONDS = 300.0


class RpcDevice:
    """A device of a tracker, as `tvmquant.devices.device.Device`; to be closed.

    Parameters
    ----------
    tracker : Tracker
    probe : Path
        Library that `tvmquant.devices.probe.build_probe` made for the device.
    call_seconds : float
        Longest time of one call.

    Raises
    ------
    DeviceError
        If the tracker does not answer, or no device gets free in time. Any method raises it where
        the device does not answer any more.
    """

    def __init__(self, tracker: Tracker, probe: Path, call_seconds: float = CALL_SECONDS) -> None:
        from tvm.support.popen_pool import PopenWorker

        tracker.devices()
        self._tracker = tracker
        self._limit = call_seconds
        self._worker = PopenWorker(stderr=subprocess.DEVNULL)
        self._cpuinfo: str | None = None
        try:
            self._send(
                rpc_worker.open_session, (tracker, SESSION_SECONDS, str(probe)),
                tracker.wait_seconds,
            )  # fmt: skip
        except TimeoutError:
            raise DeviceError(
                f"no device {tracker.name} of the tracker {tracker.address} was free within "
                f"{tracker.wait_seconds:g} s"
            ) from None
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            raise DeviceError(
                f"the device {self.name} of the tracker {tracker.address} cannot be used: "
                f"{last_line(error)}"
            ) from None

    @property
    def name(self) -> str:
        """``rpc:KEY``."""
        return self._tracker.name

    def architecture(self) -> str:
        """Return "": loading the probe has told."""
        return ""

    def features(self) -> frozenset[str]:
        """Return the features of the device's processor; empty where it does not tell."""
        if self._cpuinfo is None:
            self._cpuinfo = str(self.call("asking for its processor", rpc_worker.cpuinfo))
            if not features_in(self._cpuinfo):
                logger.warning(
                    "the device %s does not tell the features of its processor; code that it "
                    "lacks instructions for ends its session",
                    self.name,
                )
        return features_in(self._cpuinfo)

    def cores(self) -> None:
        """Return None: it does not tell."""

    def use_threads(self, threads: int) -> None:
        """Let TVM compute with ``threads`` threads there.

        Raises
        ------
        DeviceError
            If it computes with another number.
        """
        used = self.call("setting its threads", rpc_worker.use_threads, threads)
        if used != threads:
            raise DeviceError(
                f"the device {self.name} computes with {used} threads instead of {threads}; start "
                f"its server with TVM_NUM_THREADS={threads}, or pass --threads {used}"
            )

    def tensor(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the array, contiguous: programs send it when they run."""
        return np.ascontiguousarray(array)

    def arrays(self, outputs: Any) -> list[npt.NDArray[Any]]:
        """Return the outputs, which have been fetched."""
        return list(outputs)

    def load(self, library: Path) -> RpcProgram:
        """Send a library and load it; errors as of `tvmquant.devices.device.Device.load`."""
        number = self.call("loading a library", rpc_worker.load, str(library))
        return RpcProgram(self, number)

    def close(self) -> None:
        """End the session."""
        self._worker.kill()

    def __enter__(self) -> RpcDevice:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Execute a function of `rpc_worker` in the process that holds the session.

        Parameters
        ----------
        what : str
            For messages, as in "while loading a library".

        Raises
        ------
        DeviceError
            If the device does not answer in time, or is lost.
        RuntimeError, ValueError
            If it answers that this cannot be done.
        """
        try:
            return self._send(function, arguments, self._limit)
        except TimeoutError:
            reason = f"no answer within {self._limit:g} s"
        except (OSError, RuntimeError, ValueError) as error:
            if self._worker.is_alive() and self._answers():
                raise
            reason = last_line(error)
        self.close()
        raise DeviceError(
            f"the device {self.name} of the tracker {self._tracker.address} was lost while {what} "
            f"({reason}); what was measured before is kept, start its server again and repeat"
        )

    def _answers(self) -> bool:
        try:
            return bool(self._send(rpc_worker.answers, (), self._limit))
        except (OSError, TimeoutError):
            return False

    def _send(self, function: Callable[..., Any], arguments: Any, limit: float) -> Any:
        self._worker.send(function, arguments, timeout=limit)
        return self._worker.recv()


class RpcProgram:
    """A library on a device; see `tvmquant.devices.device.Program`.

    Parameters
    ----------
    device : RpcDevice
    number : int
        Of the library there.
    """

    def __init__(self, device: RpcDevice, number: int) -> None:
        self.device = device
        self.number = number
        # whose inputs the device holds
        self.prepared: RpcRunner | None = None

    def runner(self, entry: str, inputs: Sequence[Any]) -> RpcRunner:
        """Return a function that runs an entry, and times it by the device's clock."""
        return RpcRunner(self, entry, inputs)

    def kernel_seconds(
        self, entry: str, inputs: Sequence[Any], kernels: Collection[str], repeats: int
    ) -> list[list[float]]:
        """Return the seconds of every call of known kernels, by the device's clock."""
        found: list[list[float]] = self.device.call(
            "timing kernels", rpc_worker.kernel_seconds, self.number, entry, list(inputs),
            sorted(kernels), repeats,
        )  # fmt: skip
        return found


class RpcRunner:
    """Runs an entry of a program on fixed inputs; a `tvmquant.devices.device.TimedRunner`.

    Parameters
    ----------
    program : RpcProgram
    entry : str
    inputs : sequence of arrays
    """

    def __init__(self, program: RpcProgram, entry: str, inputs: Sequence[Any]) -> None:
        self._program = program
        self._entry = entry
        self._inputs = list(inputs)

    def __call__(self) -> list[npt.NDArray[Any]]:
        """Run once and return the outputs."""
        outputs: list[npt.NDArray[Any]] = self._call("running", rpc_worker.run)
        return outputs

    def seconds(self) -> float:
        """Run twice, and return how long the second run took."""
        return float(self._call("timing", rpc_worker.seconds))

    def _call(self, what: str, function: Callable[..., Any]) -> Any:
        program = self._program
        call = program.device.call
        if program.prepared is not self:
            number = program.number
            call("sending inputs", rpc_worker.set_inputs, number, self._entry, self._inputs)
            program.prepared = self
        return call(f"{what} {self._entry!r}", function, program.number, self._entry)
