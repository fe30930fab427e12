"""What is kept of measurements: records, what they are of, and what they say together."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tvmquant.devices.host import processor_name
from tvmquant.machine import Machine

SCHEMA_VERSION: Final = 1
# Between measurements of one kernel, on a machine that does nothing else.
AGREEMENT: Final = 0.05


class Header(BaseModel):
    """What the measurements of a file are of.

    Parameters
    ----------
    schema_version : int
        1.
    target : dict
        Options of the TVM target.
    threads : int
        Threads of the kernels.
    versions : dict
        Of tvmquant and TVM, whose kernels and code were measured.
    cpu : str
        Processor that made the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    target: dict[str, Any]
    threads: int = Field(gt=0)
    versions: dict[str, str]
    cpu: str

    @classmethod
    def of(cls, machine: Machine, cpu: str = "") -> Header:
        """Describe what this version measures for a machine."""
        return cls(
            target=json.loads(machine.options),
            threads=machine.threads,
            versions={
                "tvmquant": importlib.metadata.version("tvmquant"),
                "tvm": importlib.metadata.version("apache-tvm"),
            },
            cpu=cpu or processor_name(),
        )

    def measures_as(self, other: Header) -> bool:
        """Whether the times of two files mean the same, apart from the processor."""
        return self.identity() == other.identity()

    def identity(self) -> str:
        """Return what the measured times depend on, as one line for messages."""
        options = json.dumps(self.target, sort_keys=True)
        versions = ", ".join(f"{name} {version}" for name, version in sorted(self.versions.items()))
        return f"target {options}, {self.threads} threads, {versions}"


class Record(BaseModel):
    """One measurement of one tiling, or how it failed.

    Parameters
    ----------
    key, family, spec
        `Workload.key`, its family and its encoded spec.
    tiling : dict
        The encoded tiling.
    default : bool
        Whether this is the analytic default.
    seconds : float, optional
        Least mean time of a call over the repeats; None where it failed.
    median : float, optional
        Median of the same.
    spread : float, optional
        Interquartile range of the repeats over their median.
    repeats : int
    error : str, optional
        Why there is no time.
    time : str
        When it was measured, ISO 8601 in UTC.
    cpu : str
        Processor, or ``rpc:KEY`` of a device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    key: str
    family: str
    spec: dict[str, Any]
    tiling: dict[str, Any]
    default: bool = False
    seconds: float | None = Field(default=None, gt=0)
    median: float | None = Field(default=None, gt=0)
    spread: float | None = Field(default=None, ge=0)
    repeats: int = Field(default=0, ge=0)
    error: str | None = None
    time: str
    cpu: str

    @model_validator(mode="after")
    def _measured_or_failed(self) -> Record:
        if (self.seconds is None) == (self.error is None):
            raise ValueError("expected either seconds or error")
        return self


@dataclass(frozen=True)
class Timing:
    """What all measurements of one tiling say.

    Parameters
    ----------
    tiling : dict
        Encoded.
    default : bool
    seconds : float
        Median over the measurements, the lower one of two: what disturbs only ever adds.
    least : float
        Least measurement, in seconds.
    spread : float
        (largest - least measurement) / median; of a single one, the spread within it.
    trials : int
        Number of measurements.
    """

    tiling: dict[str, Any]
    default: bool
    seconds: float
    least: float
    spread: float
    trials: int

    @property
    def settled(self) -> bool:
        """Whether half of the measurements lie within `AGREEMENT` of the least."""
        return self.seconds <= self.least * (1 + AGREEMENT)

    @classmethod
    def of(cls, records: list[Record]) -> Timing:
        """Summarize the successful measurements, at least one, of one tiling."""
        times = [record.seconds for record in records if record.seconds is not None]
        median = statistics.median_low(times)
        spread = (max(times) - min(times)) / median
        if len(times) == 1:
            spread = records[0].spread or 0.0
        default = any(record.default for record in records)
        return cls(records[0].tiling, default, median, min(times), spread, len(times))


def first_problem(error: ValidationError) -> str:
    """Return the first field that is wrong, its value, and why."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    value = "" if problem["type"] in ("missing", "json_invalid") else f" = {problem['input']!r}"
    return f"{field}{value}: {problem['msg']}" if field else str(problem["msg"])
