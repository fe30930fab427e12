"""Processes of torchrun that train one network together."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Final, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from tvmquant.errors import TrainingError

T = TypeVar("T")
# While the first process validates integers, on its processor, the others wait.
LONGEST_WAIT: Final = timedelta(hours=24)


def join(device: torch.device) -> None:
    """Join the group that torchrun started this process for, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":  # numbers and objects that processes exchange are put there
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)


def rank() -> int:
    """Return the number of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shared(network: nn.Module) -> nn.Module:
    """Return a network whose gradients are the means of all processes'."""
    if size() == 1:
        return network
    # passes of a step may leave out what others reach, such as the steps of another width
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


def of_the_first(value: T) -> T:
    """Return the first process's value; waits for it."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def mean(value: float) -> float:
    """Return the mean of a number over the processes."""
    if size() == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        found = found.cuda()
    dist.all_reduce(found)
    return float(found) / size()


def chosen_device(name: str | None) -> torch.device:
    """Return a device; of none, the GPU of this process where torch has one, else the CPU.

    ``cuda`` without a number is the GPU of this process.

    Raises
    ------
    TrainingError
        When torch has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"device {name!r}: torch cannot compute there ({reason})") from error
    return device
