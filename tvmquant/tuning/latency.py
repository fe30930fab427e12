"""The latency of every layer of a model under every bit choice: a view of the tuning database."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tvmquant.atomic_write import atomic_write
from tvmquant.errors import DataError, TuningError
from tvmquant.records import load_record, save_record
from tvmquant.tuning.database import Database
from tvmquant.tuning.workload import Workload

SCHEMA_VERSION: Final = 1


class Entry(BaseModel):
    """The latency of one layer under one bit choice.

    Parameters
    ----------
    model : str
        Name of the model.
    layer : str
        Name of the ONNX node.
    choice : str
        Such as ``w4a8``.
    workload : str
        `Workload.key`: equal for layers that share their kernel's measurements.
    family : str
    median_ms : float
        Of the tiling that a build takes, which is the analytic default unless another is faster by
        more than `tvmquant.tuning.database.MARGIN`: median over its measurements, in milliseconds.
    spread : float
        (largest - least measurement) / median.
    trials : int
        Measurements of the tiling that a build takes.
    default_ms : float
        The same of the analytic default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    layer: str
    choice: str
    workload: str
    family: str
    median_ms: float = Field(gt=0)
    spread: float = Field(ge=0)
    trials: int = Field(gt=0)
    default_ms: float = Field(gt=0)

    @property
    def place(self) -> tuple[str, str, str]:
        """What it is the latency of: model, layer and choice."""
        return self.model, self.layer, self.choice

    @property
    def gain(self) -> float:
        """Time of the default over that of the tiling that a build takes, >= 1."""
        return self.default_ms / self.median_ms


class LatencyTable(BaseModel):
    """Latencies by layer and bit choice, of one model or of several.

    Parameters
    ----------
    schema_version : int
        1.
    target : dict
        Options of the TVM target.
    threads : int
    versions : dict
        Of tvmquant and TVM.
    entries : tuple of Entry
        At most one for each model, layer and choice.

    Examples
    --------
    >>> table = LatencyTable.from_json("latency.json") # doctest: +SKIP
    >>> sum(entry.median_ms for entry in table.entries if entry.choice == "w8a8") # doctest: +SKIP
    12.3
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    target: dict[str, Any]
    threads: int = Field(gt=0)
    versions: dict[str, str]
    entries: tuple[Entry, ...]

    @classmethod
    def collect(
        cls, database: Database, model: str, layers: Mapping[str, Mapping[str, Workload]]
    ) -> LatencyTable:
        """Look up what was measured for a model; the rest has no entry.

        Parameters
        ----------
        database : Database
        model : str
            Its name.
        layers : mapping
            Workloads by layer and choice, from `workloads_by_choice`.
        """
        header = database.header
        entries = []
        for layer, choices in layers.items():
            for choice, workload in choices.items():
                best, default = database.best(workload.key), database.default(workload.key)
                if best is None or default is None:
                    continue
                entries.append(
                    Entry(
                        model=model,
                        layer=layer,
                        choice=choice,
                        workload=workload.key,
                        family=workload.family,
                        median_ms=best.seconds * 1e3,
                        spread=best.spread,
                        trials=best.trials,
                        default_ms=default.seconds * 1e3,
                    )
                )
        return cls(
            target=header.target, threads=header.threads, versions=header.versions,
            entries=tuple(entries),
        )  # fmt: skip

    def completed_by(self, older: LatencyTable) -> LatencyTable:
        """Return the table with those entries of an older one that it has none in place of.

        Raises
        ------
        TuningError
            If the tables are of different targets, thread counts or versions.
        """
        for name in ("target", "threads", "versions"):
            mine, theirs = getattr(self, name), getattr(older, name)
            if mine != theirs:
                raise TuningError(
                    f"latency tables of different {name} cannot be merged: {mine} and {theirs}; "
                    "tune both for the same"
                )
        places = {entry.place for entry in self.entries}
        kept = tuple(entry for entry in older.entries if entry.place not in places)
        return self.model_copy(update={"entries": (*self.entries, *kept)})

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the table; an existing file is replaced at once or not at all.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        save_record(self, path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Read a table that `to_json` wrote.

        Raises
        ------
        DataError
            If the file is missing, not JSON, of another schema, or a field is wrong; names the
            field and its value.
        """
        return load_record(cls, path, "remove it and tune again")

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each entry, with a header line; `pandas.read_csv` reads it.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        rows = [
            {
                **entry.model_dump(),
                "gain": entry.gain,
                "target": json.dumps(self.target, sort_keys=True),
                "threads": self.threads,
                **{f"{name}_version": version for name, version in self.versions.items()},
            }
            for entry in self.entries
        ]
        columns = [*Entry.model_fields, "gain", "target", "threads"]
        columns += [f"{name}_version" for name in self.versions]

        try:
            with (
                atomic_write(path) as part,
                part.open("w", encoding="utf-8", newline="") as file,
            ):
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from error
