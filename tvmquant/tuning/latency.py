"""The latency of every layer of a model under every bit choice: a view of the tuning database."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
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
    def gain(self) -> float:
        """Time of the default over that of the tiling that a build takes, >= 1."""
        return self.default_ms / self.median_ms


class LatencyTable(BaseModel):
    """Latencies by layer and bit choice, of one model or, merged, of several.

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
    >>> table.milliseconds("conv1", "w8a8")            # doctest: +SKIP
    0.42
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
        """Look up what was measured for a model; the rest has no entry, see `missing`.

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

    def milliseconds(self, layer: str, choice: str, model: str | None = None) -> float:
        """Return the median latency of a layer under a bit choice, in milliseconds.

        Parameters and errors are those of `entry`.
        """
        return self.entry(layer, choice, model).median_ms

    def entry(self, layer: str, choice: str, model: str | None = None) -> Entry:
        """Return the entry of a layer under a bit choice.

        Parameters
        ----------
        layer, choice : str
        model : str, optional
            Needed where several models of a merged table have a layer of that name.

        Raises
        ------
        TuningError
            If the table has no entry for it, or several.
        """
        found = [e for e in self._of(model) if (e.layer, e.choice) == (layer, choice)]
        if len(found) > 1:
            models = ", ".join(entry.model for entry in found)
            raise TuningError(
                f"the latency table has layer {layer!r} of several models ({models}); name one"
            )
        if not found:
            known = [entry.choice for entry in self._of(model) if entry.layer == layer]
            raise TuningError(
                f"the latency table has no entry for layer {layer!r} with {choice} (it has: "
                f"{', '.join(known) or 'no choice of this layer'}); tune the model with "
                f"--choices {choice}"
            )
        return found[0]

    def missing(
        self, wanted: Iterable[tuple[str, str]], model: str | None = None
    ) -> list[tuple[str, str]]:
        """Return those pairs of layer and choice that have no entry."""
        known = {(entry.layer, entry.choice) for entry in self._of(model)}
        return [pair for pair in wanted if pair not in known]

    def require(self, wanted: Iterable[tuple[str, str]], model: str | None = None) -> None:
        """Check that all pairs of layer and choice have an entry.

        Raises
        ------
        TuningError
            If not; names all that are missing.
        """
        if absent := self.missing(wanted, model):
            names = ", ".join(f"{layer} ({choice})" for layer, choice in absent)
            choices = ",".join(dict.fromkeys(choice for _, choice in absent))
            raise TuningError(
                f"the latency table lacks {len(absent)} layers that are needed: {names}; tune the "
                f"model with --choices {choices}"
            )

    def merge(self, other: LatencyTable) -> LatencyTable:
        """Return the entries of both; of two for the same layer, the one of more trials.

        Raises
        ------
        TuningError
            If the tables are of different targets, thread counts or versions.
        """
        for name in ("target", "threads", "versions"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise TuningError(
                    f"latency tables of different {name} cannot be merged: {mine} and {theirs}; "
                    "tune both for the same"
                )
        merged: dict[tuple[str, str, str], Entry] = {}
        for entry in (*self.entries, *other.entries):
            place = entry.model, entry.layer, entry.choice
            if place not in merged or entry.trials > merged[place].trials:
                merged[place] = entry
        return self.model_copy(update={"entries": tuple(merged.values())})

    def _of(self, model: str | None) -> list[Entry]:
        return [entry for entry in self.entries if model in (None, entry.model)]

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
