"""How close a library's outputs were to the float model's when it was built: ``outputs.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tvmquant.output_quality import BlockQuality, OutputQuality
from tvmquant.records import load_record, save_record

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from tvmquant.deploy.manifest import Manifest

SCHEMA_VERSION: Final = 1
OUTPUTS_NAME: Final = "outputs.json"


class PartRecord(BaseModel):
    """A part of an output.

    Parameters
    ----------
    name : str
        Of the ONNX node that computes it.
    sqnr_db : float
        Against the float model; infinite where equal.
    constant : float, optional
        The one value that the library gives everywhere, where the float model's values vary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    sqnr_db: float
    constant: float | None = None


class OutputEntry(PartRecord):
    """An output and the parts that it joins."""

    parts: list[PartRecord] = []


class OutputRecord(BaseModel):
    """What comparing a library with the float model found.

    Parameters
    ----------
    schema_version : int
        1.
    library : str
        SHA-256 of the library that was compared.
    items : int
        Of the calibration data, that both were run on.
    outputs : list of OutputEntry
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = SCHEMA_VERSION
    library: str
    items: int = Field(gt=0)
    outputs: list[OutputEntry]

    @classmethod
    def of(cls, library: str, items: int, outputs: Sequence[OutputQuality]) -> OutputRecord:
        """Return the record of what was found."""
        entries = [
            OutputEntry(
                name=output.name,
                sqnr_db=output.sqnr_db,
                constant=output.constant,
                parts=[
                    PartRecord(name=block.name, sqnr_db=block.sqnr_db, constant=block.constant)
                    for block in output.blocks
                ],
            )
            for output in outputs
        ]
        return cls(library=library, items=items, outputs=entries)

    def qualities(self) -> tuple[OutputQuality, ...]:
        """Return what was found of each output."""
        return tuple(
            OutputQuality(
                entry.name,
                entry.sqnr_db,
                entry.constant,
                tuple(BlockQuality(part.name, part.sqnr_db, part.constant) for part in entry.parts),
            )
            for entry in self.outputs
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an existing file is replaced at once or not at all."""
        save_record(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OutputRecord:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            When the file is missing, not JSON, of another version, or a field is wrong.
        """
        return load_record(cls, path, "compile the model again with --force")


def read_outputs(folder: Path, manifest: Manifest) -> OutputRecord | None:
    """Return the record of a library; None where there is none, or one of another build.

    Raises
    ------
    DataError
        When the file is damaged.
    """
    path = folder / OUTPUTS_NAME
    record = OutputRecord.load(path) if path.is_file() else None
    known = record is not None and record.library == manifest.library["sha256"]
    return record if known else None
