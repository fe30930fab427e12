"""Workloads, and stand-ins for builder and runner that take no time."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvmquant.machine import Machine
from tvmquant.schedules.conv2d import Conv2DSpec
from tvmquant.schedules.depthwise_conv2d import DepthwiseConv2DSpec
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.tuning.cost_model import features
from tvmquant.tuning.measure import Artifact, Candidate, Outcome
from tvmquant.tuning.record import Header, Record
from tvmquant.tuning.workload import Workload, canonical_json, encode

THREADS = 2
REQUANTIZE = Epilogue("int32", "uint8", 0, 255)


def haswell() -> Machine:
    """Return a machine that is not this one."""
    return Machine.of("haswell", THREADS)


def conv(channels: int = 16, outputs: int = 16, **fields) -> Workload:
    """Return a 3x3 convolution on 14x14 pixels."""
    spec = Conv2DSpec(
        1, 14, 14, channels, outputs, (3, 3), padding=(1, 1, 1, 1), epilogue=REQUANTIZE, **fields
    )
    return Workload.of("conv2d", spec)


def depthwise() -> Workload:
    """Return a depthwise convolution, the family with the largest space."""
    spec = DepthwiseConv2DSpec(1, 14, 14, 32, padding=(1, 1, 1, 1), epilogue=REQUANTIZE)
    return Workload.of("depthwise_conv2d", spec)


def record(workload: Workload, tiling, seconds: float | None = 1e-3, **fields) -> Record:
    """Return a record of a measurement, or of a failure where seconds is None."""
    if seconds is None:
        fields = {"error": "it broke", **fields}
    else:
        fields = {"seconds": seconds, "median": seconds, "spread": 0.01, "repeats": 8, **fields}
    return Record(
        key=workload.key,
        family=workload.family,
        spec=encode(workload.spec),
        tiling=encode(tiling),
        time="2026-11-21T00:00:00+00:00",
        cpu="a processor",
        **fields,
    )


def write_lines(path: Path, machine: Machine, records: Sequence[Record]) -> Path:
    """Write the JSON lines that a database of this path takes over; return their file."""
    lines = [Header.of(machine, "a processor").model_dump_json()]
    lines += [item.model_dump_json(exclude_defaults=True) for item in records]
    file = path.with_suffix(".jsonl")
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def synthetic_seconds(workload: Workload, tiling) -> float:
    """Return a time that depends on a tiling as that of a real machine does."""
    found = features(workload, tiling, THREADS)
    registers = found["log accumulators"]
    spilled = 4.0 if registers > math.log2(14) else 1.0
    tasks = 2 ** found["log tasks"]
    cycles = 2 ** found["log busiest_work"] / (1 + registers) * spilled
    return (cycles + 300 * tasks) * 1e-9


class StandInBuilder:
    """Builds nothing; fails for the tilings that it is told of."""

    def __init__(self, broken=()):
        self.broken = set(broken)
        self.built: list[Candidate] = []
        self.closed = False

    def build(self, candidates):
        self.built += candidates
        return [
            Outcome(error="no such instruction")
            if canonical_json(c.tiling) in self.broken
            else Artifact(Path(f"{len(self.built) - len(candidates) + i}"), [])
            for i, c in enumerate(candidates)
        ]

    def close(self):
        self.closed = True


class StandInRunner:
    """Takes the times from a function; interrupts after so many measurements."""

    cpu = "a stand-in"

    def __init__(self, builder, seconds=synthetic_seconds, *, noise=0.0, interrupt_after=None):
        self.builder, self.seconds, self.noise = builder, seconds, noise
        self.interrupt_after = interrupt_after
        self.measured: list[Candidate] = []
        self.closed = False
        self.rng = np.random.default_rng(0)

    def measure(self, artifacts):
        for index, artifact in enumerate(artifacts):
            if len(self.measured) == self.interrupt_after:
                raise KeyboardInterrupt
            candidate = self.builder.built[int(str(artifact.path))]
            self.measured.append(candidate)
            least = self.seconds(candidate.workload, candidate.tiling)
            noise = self.rng.exponential(self.noise, 8) if self.noise else np.zeros(8)
            yield index, Outcome(tuple(float(s) for s in least * (1 + noise)))

    def close(self):
        self.closed = True
