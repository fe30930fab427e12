"""Every measurement of every kernel: one file of JSON lines for each target and thread count.

The first line describes the file, each other line is a `Record`. A line is appended by one write
and reaches the disk before the next measurement begins, so that a run that is killed at any moment
loses the measurement in flight at most. Several processes may append to one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tvmquant.devices.host import processor_name
from tvmquant.errors import TuningError
from tvmquant.machine import Machine

if TYPE_CHECKING:
    from tvmquant.schedules.families import Tilings

logger = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
SUFFIX: Final = ".jsonl"
# Between measurements of one kernel, on a machine that does nothing else.
AGREEMENT: Final = 0.05
# A tiling replaces the analytic default where it is faster by more than this: measured alone, with
# warm caches, smaller differences turn around in a network. ResNet-50 on Zen 3, with the fastest of
# 2,108 tilings whatever their lead, took 1.02 times the default's median.
MARGIN: Final = 0.03


class Header(BaseModel):
    """The first line of a file.

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


class Database:
    """The measurements for one target and thread count.

    Parameters
    ----------
    folder : path
        Holds one file for each target and thread count.
    machine : Machine
    create : bool
        Make folder and file where they are missing; else their absence is an error.
    cpu : str, optional
        Processor that is measured; default: that of this machine.

    Attributes
    ----------
    path : Path
        The file.
    header : Header
    skipped : list of str
        Lines that could not be read, as ``file:line: reason``.

    Raises
    ------
    TuningError
        If the file is of another target or version, is not a database, or cannot be read.

    Examples
    --------
    >>> database = Database("table", Machine.of(threads=2))   # doctest: +SKIP
    >>> tvmquant.build(graph, out="model", tilings=database.tilings())   # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        machine: Machine,
        *,
        create: bool = True,
        cpu: str = "",
    ) -> None:
        self.machine = machine
        self.header = Header.of(machine, cpu)
        self.folder = Path(folder)
        self.path = self.folder / file_name(machine)
        self.skipped: list[str] = []
        self._records: dict[str, list[Record]] = {}
        self._geometries: dict[str, list[str]] = {}
        if not create and not self.path.is_file():
            raise TuningError(self._absent())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked() as descriptor:
                _drop_torn_line(descriptor)
                if os.fstat(descriptor).st_size == 0:
                    _append_line(descriptor, self.header.model_dump_json())
                content = _read_all(descriptor)
        except OSError as error:
            raise TuningError(
                f"the tuning database {self.path} cannot be opened: {error.strerror}"
            ) from error
        self._load(content)

    def __len__(self) -> int:
        """Return the number of records."""
        return sum(len(records) for records in self._records.values())

    def records(self, key: str | None = None) -> list[Record]:
        """Return the records of one workload, or of all, in the order of measuring."""
        if key is not None:
            return list(self._records.get(key, []))
        return [record for records in self._records.values() for record in records]

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns.

        Raises
        ------
        TuningError
            If it cannot be written, as when the disk is full.
        """
        try:
            with self._locked() as descriptor:
                _drop_torn_line(descriptor)
                _append_line(descriptor, record.model_dump_json(exclude_defaults=True))
        except OSError as error:
            raise TuningError(
                f"the tuning database {self.path} cannot be written to: {error.strerror}; what was "
                "measured before is kept"
            ) from error
        self._add(record)

    def merge(self, other: Database) -> int:
        """Append the records of another file for the same target that this one lacks.

        Returns
        -------
        int
            How many.

        Raises
        ------
        TuningError
            If the other one is of another target, thread count or version.
        """
        if not other.header.measures_as(self.header):
            raise TuningError(
                f"{other.path} ({other.header.identity()}) and {self.path} "
                f"({self.header.identity()}) cannot be merged; measure both for the same"
            )
        present = {record.model_dump_json() for record in self.records()}
        lacking = [r for r in other.records() if r.model_dump_json() not in present]
        for record in lacking:
            self.append(record)
        return len(lacking)

    def timings(self, key: str) -> list[Timing]:
        """Return a summary of every tiling of a workload that ran, the fastest first."""
        by_tiling: dict[str, list[Record]] = {}
        for record in self._records.get(key, []):
            if record.error is None:
                by_tiling.setdefault(json.dumps(record.tiling, sort_keys=True), []).append(record)
        return sorted((Timing.of(r) for r in by_tiling.values()), key=lambda t: t.seconds)

    def preferred(self, key: str) -> list[Timing]:
        """Return `timings`, the default first where nothing beats it by more than `MARGIN`."""
        timings = self.timings(key)
        default = next((timing for timing in timings if timing.default), None)
        if default is None or default.seconds > (1.0 + MARGIN) * timings[0].seconds:
            return timings
        return [default, *(timing for timing in timings if timing is not default)]

    def best(self, key: str) -> Timing | None:
        """Return the tiling of a workload to take; None where none was measured."""
        return next(iter(self.preferred(key)), None)

    def default(self, key: str) -> Timing | None:
        """Return the timing of the analytic default; None where it was not measured."""
        return next((timing for timing in self.timings(key) if timing.default), None)

    def tilings(self) -> Callable[[str, Any, str], Any]:
        """Return what `tvmquant.build` takes as ``tilings``: of each kernel the `best` one.

        That is the fastest measured one where it beats the analytic default by more than `MARGIN`,
        else the default. A kernel that was not measured takes the tiling of a measured one that
        differs in the epilogue only, else its analytic default. What is not among the tilings that
        this version offers for the kernel is not taken.
        """
        from tvmquant.tuning.workload import Workload, canonical_json

        chosen: dict[str, Any] = {}

        def choose(workload: Workload) -> Any:
            offered = workload.tilings(self.machine)
            for key in [workload.key, *self._geometries.get(workload.geometry, [])]:
                for timing in self.preferred(key):
                    tiling = offered.get(canonical_json(timing.tiling))
                    if tiling is not None:
                        return tiling
                    logger.warning(
                        "%s: workload %s: this version does not offer the tiling %s; it is ignored",
                        self.path, key, timing.tiling,
                    )  # fmt: skip
            return None

        def lookup(family: str, spec: Any, _layer: str) -> Any:
            workload = Workload.of(family, spec)
            if workload.key not in chosen:
                chosen[workload.key] = choose(workload)
            return chosen[workload.key]

        return lookup

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file while no other process writes to it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _load(self, content: bytes) -> None:
        first, *lines = content.decode("utf-8", errors="replace").splitlines()
        try:
            found = Header.model_validate_json(first)
        except ValidationError as error:
            raise TuningError(
                f"{self.path}:1: {_first_problem(error)}; this is no tuning database of schema "
                f"version {SCHEMA_VERSION}, name another folder"
            ) from None
        if not found.measures_as(self.header):
            raise TuningError(
                f"{self.path} was measured for {found.identity()}; wanted: "
                f"{self.header.identity()}; name another folder, or remove the file to measure "
                "again"
            )
        if found.cpu != self.header.cpu:
            logger.warning(
                "%s was begun on %s, this is %s: their times may differ",
                self.path, found.cpu, self.header.cpu,
            )  # fmt: skip
        for number, line in enumerate(lines, start=2):
            try:
                self._add(Record.model_validate_json(line))
            except ValidationError as error:
                self.skipped.append(f"{self.path}:{number}: {_first_problem(error)}")
                logger.warning("skipped %s", self.skipped[-1])

    def _add(self, record: Record) -> None:
        from tvmquant.tuning.workload import geometry_of

        if record.key not in self._records:
            geometry = geometry_of(record.family, record.spec)
            self._geometries.setdefault(geometry, []).append(record.key)
        self._records.setdefault(record.key, []).append(record)

    def _absent(self) -> str:
        present = sorted(self.folder.glob(f"*{SUFFIX}")) if self.folder.is_dir() else []
        holds = ", ".join(p.stem for p in present) or "none"
        return (
            f"{self.folder} holds no measurements for {self.header.identity()} "
            f"(file {self.path.name}; found: {holds}); run `tvmquant tune` for this target first"
        )


def noting(tilings: Tilings, without: list[str]) -> Tilings:
    """Add the layers that get no tiling to a list."""

    def lookup(family: str, spec: Any, layer: str) -> Any:
        tiling = tilings(family, spec, layer)
        if tiling is None:
            without.append(layer)
        return tiling

    return lookup


def file_name(machine: Machine) -> str:
    """Return the name of the file of a target and thread count."""
    options = json.loads(machine.options)
    digest = hashlib.sha256(machine.options.encode()).hexdigest()[:8]
    return f"{options.get('mcpu', options['kind'])}-{digest}-{machine.threads}threads{SUFFIX}"


def _read_all(descriptor: int) -> bytes:
    content, offset = b"", 0
    while part := os.pread(descriptor, 1 << 20, offset):
        content += part
        offset += len(part)
    return content


def _drop_torn_line(descriptor: int) -> None:
    """Cut off what follows the last line end: a writer was killed there. The file is locked."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def _append_line(descriptor: int, text: str) -> None:
    """Write a whole line to the disk, or nothing."""
    line = text.encode() + b"\n"
    size = os.fstat(descriptor).st_size
    written = os.write(descriptor, line)
    if written < len(line):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    value = "" if problem["type"] in ("missing", "json_invalid") else f" = {problem['input']!r}"
    return f"{field}{value}: {problem['msg']}" if field else str(problem["msg"])
