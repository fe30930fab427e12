"""Read tables of measurements that were kept as JSON lines: a header, then a record a line."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tvmquant.errors import TuningError
from tvmquant.tuning.record import SCHEMA_VERSION, Header, Record, first_problem

_LOG = logging.getLogger(__name__)

SUFFIX: Final = ".jsonl"


@dataclass(frozen=True)
class Lines:
    """What such a file holds.

    Parameters
    ----------
    header : Header
    records : list of Record
    skipped : list of str
        Lines that cannot be read, as ``file:line: reason``.
    """

    header: Header
    records: list[Record] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_lines(path: Path) -> Lines:
    """Read a file; what follows the last line end, where a writer was killed, is left out.

    Raises
    ------
    TuningError
        If the file cannot be read, or its first line is no header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TuningError(f"{path} cannot be read: {error.strerror}") from error
    whole = content[: content.rfind(b"\n") + 1]
    first, *lines = whole.decode("utf-8", errors="replace").splitlines() or [""]
    try:
        found = Lines(Header.model_validate_json(first))
    except ValidationError as error:
        raise TuningError(
            f"{path}:1: {first_problem(error)}; these are no measurements of schema version "
            f"{SCHEMA_VERSION}: name another folder, or remove the file"
        ) from None
    for number, line in enumerate(lines, start=2):
        try:
            found.records.append(Record.model_validate_json(line))
        except ValidationError as error:
            found.skipped.append(f"{path}:{number}: {first_problem(error)}")
            _LOG.warning("skipped %s", found.skipped[-1])
    return found
