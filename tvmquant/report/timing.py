"""Times of a library on this machine, for its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPEATS: Final = 50


@dataclass(frozen=True)
class Timing:
    """What `time_library` measured.

    Parameters
    ----------
    kernels_ms : tuple of float
        Median of each kernel call of the manifest, in its order, in milliseconds.
    network_ms : float
        Median of the whole network without instrumentation, in milliseconds.
    threads : int
    """

    kernels_ms: tuple[float, ...]
    network_ms: float
    threads: int


def time_library(folder: Path) -> Timing:
    """Time a library and its kernels on random inputs, with the threads it was built for.

    Raises
    ------
    ArtifactError
        If it cannot be loaded on this machine.
    """
    from tvmquant.benchmark import measure, random_inputs
    from tvmquant.deploy.loader import load

    model = load(folder)
    inputs = random_inputs(model.inputs)
    latency = measure(model, inputs, repeats=REPEATS)
    kernels = model.profile(*inputs, repeats=REPEATS)
    return Timing(tuple(1e3 * seconds for _, seconds in kernels), latency.median_ms, model.threads)
