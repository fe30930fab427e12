"""Time a deployed library, alone or interleaved with what it is compared against."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.devices.device import Runner, seconds_of
from tvmquant.errors import DataError
from tvmquant.progress import Progress

if TYPE_CHECKING:
    from tvmquant.deploy.loader import Model
    from tvmquant.deploy.manifest import TensorInfo


DEFAULT_REPEATS = 100
DEFAULT_WARMUP = 10
# What random integers of more than 8 bits are below.
INDICES = 100


@dataclasses.dataclass(frozen=True)
class Latency:
    """The wall-clock times of one network.

    Parameters
    ----------
    seconds : tuple of float
        Of each run, in the order of running; at least one.

    Examples
    --------
    >>> Latency((0.003, 0.001, 0.002)).median_ms
    2.0
    """

    seconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median in milliseconds."""
        return float(np.median(self.seconds)) * 1e3

    @property
    def min_ms(self) -> float:
        """Least time in milliseconds."""
        return min(self.seconds) * 1e3

    @property
    def p90_ms(self) -> float:
        """90th percentile in milliseconds, interpolated linearly."""
        return float(np.percentile(self.seconds, 90)) * 1e3

    def to_dict(self) -> dict[str, float]:
        """Return the statistics as a mapping that is valid JSON."""
        return {
            "median_ms": self.median_ms,
            "min_ms": self.min_ms,
            "p90_ms": self.p90_ms,
            "repeats": len(self.seconds),
        }


def measure_interleaved(
    runners: Mapping[str, Runner],
    *,
    repeats: int = DEFAULT_REPEATS,
    warmup: int = DEFAULT_WARMUP,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Time several functions in rounds, so that all meet the same state of the machine.

    Parameters
    ----------
    runners : mapping of str to callable
        Each call is one run.
    repeats : int
        Timed rounds, >= 1. Every round calls each function once.
    warmup : int
        Rounds before them that are not timed, >= 0.
    progress : callable (done, total), optional
        Called between rounds with the number of rounds.

    Returns
    -------
    dict of str to list of float
        Seconds of each run, `repeats` of them.

    Raises
    ------
    DataError
        When `repeats` or `warmup` is out of range.

    Notes
    -----
    The order rotates from round to round: what a function leaves in the caches then meets each of
    the others equally often. Python's cyclic garbage collector is off meanwhile.
    """
    if repeats < 1 or warmup < 0:
        raise DataError(
            f"repeats = {repeats}, warmup = {warmup}; expected at least 1 repeat and 0 warm-up runs"
        )
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners.items())
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(warmup + repeats):
            turn = index % max(len(order), 1)
            for name, run in order[turn:] + order[:turn]:
                elapsed = seconds_of(run)
                if index >= warmup:
                    seconds[name].append(elapsed)
            if progress is not None:
                progress(index + 1, warmup + repeats)
    finally:
        if collecting:
            gc.enable()
    return seconds


def compare(
    runners: Mapping[str, Runner],
    *,
    repeats: int = DEFAULT_REPEATS,
    warmup: int = DEFAULT_WARMUP,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Return the latency of each function; parameters as of `measure_interleaved`."""
    seconds = measure_interleaved(runners, repeats=repeats, warmup=warmup, progress=progress)
    return {name: Latency(tuple(times)) for name, times in seconds.items()}


def measure(
    model: Model | Callable[..., object],
    inputs: Sequence[NDArray[Any]],
    *,
    repeats: int = DEFAULT_REPEATS,
    warmup: int = DEFAULT_WARMUP,
    progress: Progress | None = None,
) -> Latency:
    """Return the latency of one model on fixed inputs.

    Parameters
    ----------
    model : Model or callable
        Of a `Model` the network alone is timed: its inputs are converted once, before.
    inputs : sequence of arrays
        One per input; see `random_inputs`.
    repeats, warmup, progress
        As of `measure_interleaved`.
    """
    runners = {"model": runner(model, inputs)}
    return compare(runners, repeats=repeats, warmup=warmup, progress=progress)["model"]


def runner(model: Model | Callable[..., object], inputs: Sequence[NDArray[Any]]) -> Runner:
    """Return a function without arguments that runs a model on fixed inputs, for `compare`."""
    bind: Callable[..., Runner] = getattr(model, "bind", lambda *xs: lambda: model(*xs))
    return bind(*inputs)


def random_inputs(
    inputs: Sequence[TensorInfo], *, raw: bool = False, seed: int = 0
) -> list[NDArray[Any]]:
    """Return an array for each input of a model.

    Parameters
    ----------
    inputs : sequence of TensorInfo
        As `Model.inputs` holds them.
    raw : bool
        Return the integers that ``raw`` takes instead of standard normal values.
    seed : int

    Notes
    -----
    Integers of 8 bits are spread over the whole range of their type; wider ones, which may index a
    table, are below `INDICES`.
    """
    rng = np.random.default_rng(seed)

    def draw(shape: Sequence[int], dtype: str) -> NDArray[Any]:
        kind = np.dtype(dtype)
        if kind.kind == "f":
            return rng.standard_normal(shape).astype(kind)
        if kind.kind == "b":
            return rng.integers(2, size=shape).astype(kind)
        if kind.itemsize > 1:
            return rng.integers(INDICES, size=shape, dtype=kind)
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, shape, kind, endpoint=True)

    if raw:
        return [draw(info.raw_shape, info.raw_dtype) for info in inputs]
    return [draw(info.shape, info.dtype) for info in inputs]
