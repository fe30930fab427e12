"""Open the device that measures: this machine's processor, or one that a tracker holds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tvmquant.deploy.compiler import find_linker
from tvmquant.devices.cpu import CpuDevice
from tvmquant.devices.device import missing_features
from tvmquant.errors import DeviceError, TargetError
from tvmquant.target import architecture_of

if TYPE_CHECKING:
    from tvmquant.devices.device import Device
    from tvmquant.devices.tracker import Tracker
    from tvmquant.machine import Machine


@contextlib.contextmanager
def open_device(tracker: Tracker | None, machine: Machine) -> Iterator[Device]:
    """Open the device that runs what is compiled for a machine, and close it in the end.

    Parameters
    ----------
    tracker : Tracker, optional
        Where to find it; None for the processor of this machine.
    machine : Machine
        Of the device.

    Raises
    ------
    DeviceError
        If it cannot be reached.
    TargetError
        If no linker for the machine is installed.
    """
    if tracker is None:
        yield CpuDevice()
        return
    from tvmquant.devices.probe import build_probe
    from tvmquant.devices.rpc import RpcDevice

    linker = find_linker(machine.target)
    with tempfile.TemporaryDirectory(prefix="tvmquant.") as scratch:
        probe = Path(scratch, "probe.so")
        build_probe(probe, linker)
        with RpcDevice(tracker, probe) as device:
            yield device


def check_machine(machine: Machine, tracker: Tracker | None) -> None:
    """Refuse a machine whose latencies cannot be measured.

    Raises
    ------
    TargetError
        When there is no tracker, and this machine does not run what is compiled for the other.
    DeviceError
        When the tracker's device cannot be reached, or lacks features of the machine.
    """
    with open_device(tracker, machine) as device:
        missing = missing_features(device, machine.required_features)
        if tracker is not None:
            if missing:
                raise DeviceError(
                    f"the device {device.name} lacks {', '.join(missing)}, which code for "
                    f"{machine.target} may use; pass the --target that describes it"
                )
            return
        foreign = architecture_of(machine.triple) != architecture_of(device.architecture())
        if foreign or missing:
            raise TargetError(
                "latencies are measured on the target, and this machine cannot run what is "
                f"compiled for {machine.target}; name a device that can (--rpc HOST:PORT --rpc-key "
                "KEY), or write the plan on the target (tvmquant plan) and compile with it here "
                "(--plan)"
            )
