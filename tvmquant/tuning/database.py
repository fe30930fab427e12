"""The measurements of kernels for one target and thread count, and the tilings they speak for."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tvmquant.errors import TuningError
from tvmquant.machine import Machine
from tvmquant.tuning import json_lines
from tvmquant.tuning.record import Header, Record, Timing
from tvmquant.tuning.record_file import SUFFIX, RecordFile

if TYPE_CHECKING:
    from tvmquant.schedules.families import Tilings

logger = logging.getLogger(__name__)

# A tiling replaces the analytic default where it is faster by more than this: measured alone, with
# warm caches, smaller differences turn around in a network. ResNet-50 on Zen 3, with the fastest of
# 2,108 tilings whatever their lead, took 1.02 times the default's median.
MARGIN: Final = 0.03


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
        self._records: dict[str, list[Record]] = {}
        self._geometries: dict[str, list[str]] = {}
        if not create and not self._is_there():
            raise TuningError(self._absent())
        self._file = RecordFile(self.path, self.header)
        for record in self._file.records():
            self._add(record)

    @property
    def skipped(self) -> list[str]:
        """Records that cannot be read, as ``file: record N: reason``."""
        return self._file.skipped

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
        self._file.append(record)
        self._add(record)

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

    def _add(self, record: Record) -> None:
        from tvmquant.tuning.workload import geometry_of

        if record.key not in self._records:
            geometry = geometry_of(record.family, record.spec)
            self._geometries.setdefault(geometry, []).append(record.key)
        self._records.setdefault(record.key, []).append(record)

    def _is_there(self) -> bool:
        return self.path.is_file() or self.path.with_suffix(json_lines.SUFFIX).is_file()

    def _absent(self) -> str:
        suffixes = (SUFFIX, json_lines.SUFFIX)
        present = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        holds = ", ".join(dict.fromkeys(p.stem for p in present if p.suffix in suffixes)) or "none"
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
