"""What slow stages leave for a later run: a JSON record each, named after what it follows from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from tvmquant.errors import DataError
from tvmquant.records import load_record, save_record

Record = TypeVar("Record", bound=BaseModel)

_LOG = logging.getLogger(__name__)


def taken_up(
    folder: str | os.PathLike[str] | None,
    name: str,
    cls: type[Record],
    follows_from: Sequence[Any],
    make: Callable[[], Record],
) -> tuple[Record, bool]:
    """Return a record that an earlier run made of the same, else make and keep it.

    Parameters
    ----------
    folder : path, optional
        Where records are kept, as ``NAME-KEY.json``; made where it is missing. None: nothing is
        read or kept.
    name : str
        Of the stage.
    cls : type of BaseModel
        Of the record, as `load_record` takes it.
    follows_from : sequence
        JSON values that determine the record. The versions of its schema and of tvmquant are added
        to them.
    make : callable
        The stage.

    Returns
    -------
    record
    bool
        Whether it was there. A file that is damaged is not, and is replaced with a warning.

    Raises
    ------
    DataError
        When the record cannot be written.
    """
    if folder is None:
        return make(), False
    path = _path(Path(folder), name, cls, follows_from)
    if path.is_file():
        try:
            return load_record(cls, path, "it is made again"), True
        except DataError as error:
            _LOG.warning("%s", error)
    record = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_record(record, path)
    return record, False


def record_name(name: str, cls: type[BaseModel], follows_from: Sequence[Any]) -> str:
    """Return the name of the file that `taken_up` keeps a record in."""
    return _path(Path(), name, cls, follows_from).name


def kept(folder: Path, name: str, cls: type[Record], follows_from: Sequence[Any]) -> Record | None:
    """Return a record that an earlier run made of the same; None where there is none.

    Parameters
    ----------
    folder, name, cls, follows_from
        As of `taken_up`.

    Raises
    ------
    DataError
        When the record is damaged.
    """
    path = _path(folder, name, cls, follows_from)
    return load_record(cls, path, "compile the model again") if path.is_file() else None


def _path(folder: Path, name: str, cls: type[BaseModel], follows_from: Sequence[Any]) -> Path:
    versions = [cls.model_fields["schema_version"].default, importlib.metadata.version("tvmquant")]
    key = json.dumps([*versions, *follows_from], sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
