"""Records that are kept as JSON files: written whole or not at all, checked when read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tvmquant.atomic_write import atomic_write
from tvmquant.errors import DataError

Record = TypeVar("Record", bound=BaseModel)


def save_record(record: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write a record as JSON; an existing file is replaced at once or not at all.

    Raises
    ------
    DataError
        When the file cannot be written.
    """
    try:
        with atomic_write(path) as part:
            part.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{_name(record)} cannot be written to {str(path)!r}: {error.strerror}"
        ) from error


def load_record(cls: type[Record], path: str | os.PathLike[str], remedy: str) -> Record:
    """Read a record that `save_record` wrote.

    Parameters
    ----------
    cls : type of BaseModel
        With a field ``schema_version`` whose default is the version it reads.
    path : path
    remedy : str
        What the user is to do about a file that is of no use, for the messages.

    Raises
    ------
    DataError
        When the file is missing, not JSON, of another version, or a field is wrong; names the field
        and its value.
    """
    title = f"{_name(cls)} {str(path)!r}"
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_unique)
    except OSError as error:
        raise DataError(f"{title} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{title} is not a JSON file that can be used: {error}; {remedy}"
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    expected = cls.model_fields["schema_version"].default
    if version != expected:
        raise DataError(
            f"{title}: schema_version = {version!r}; this version of tvmquant reads {expected}, "
            f"{remedy}"
        )
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{title}: {_first_problem(error)}; {remedy}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that a hand-edited file gives twice, of which JSON would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _name(record: BaseModel | type[BaseModel]) -> str:
    """Return the name of a record's class as words: ``NetworkLatency`` is a network latency."""
    cls = record if isinstance(record, type) else type(record)
    return "".join(f" {c.lower()}" if c.isupper() else c for c in cls.__name__).strip()


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    value = "" if problem["type"] == "missing" else f" = {problem['input']!r}"
    return f"{field}{value}: {problem['msg']}"
