"""A file of records that several processes append to, and that survives whatever kills them.

An SQLite database with two tables: ``header`` with one row, ``record`` with a row for each
measurement, both as JSON texts. SQLite locks it, and takes back what a killed process left half
written; in the mode ``WAL`` an append costs one write to the disk (0.2 ms here, as appending a line
to a file does; 0.6 ms in the default mode, where a measurement takes 70 ms and more).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tvmquant.errors import TuningError
from tvmquant.tuning.json_lines import SUFFIX as LINES_SUFFIX
from tvmquant.tuning.json_lines import Lines, read_lines
from tvmquant.tuning.record import SCHEMA_VERSION, Header, Record, first_problem

_LOG = logging.getLogger(__name__)

SUFFIX: Final = ".sqlite"
# Marks the file as a database of ours ("tvmq"), beside the version of its schema.
APPLICATION_ID: Final = 0x74766D71
# How long to wait for another process that writes.
BUSY_SECONDS: Final = 60.0


class RecordFile:
    """The records of one file.

    Parameters
    ----------
    path : Path
        Made where it is missing, with its folder. What a file of JSON lines of the same name, as
        versions before SQLite wrote it, has measured is taken over then; that file is left alone.
    header : Header
        Of what is to be measured.

    Attributes
    ----------
    path : Path
    header : Header
        As the file has it.
    skipped : list of str
        Records that cannot be read, as ``file: record N: reason``.

    Raises
    ------
    TuningError
        If the file is of another target or version, is no such database, is damaged, or cannot be
        opened.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.skipped: list[str] = []
        if not path.exists():  # before anything is made
            _older(path, header)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._error("cannot be opened", error) from error
        weakref.finalize(self, _close, self._connection, os.getpid())
        try:
            self._prepare(header)
            (content,) = self._connection.execute("SELECT document FROM header").fetchone()
            self.header = Header.model_validate_json(content)
        except sqlite3.OperationalError as error:
            raise self._error("cannot be opened", error) from error
        except (sqlite3.DatabaseError, ValidationError, TypeError) as error:
            raise TuningError(
                f"{path} is no tuning database of schema version {SCHEMA_VERSION}, or it is "
                f"damaged ({error}); name another folder, or remove the file to measure again"
            ) from None
        _check_header(self.header, header, path)

    def records(self) -> Iterator[Record]:
        """Yield the records in the order of measuring, without those that are skipped."""
        try:
            rows = self._connection.execute(
                "SELECT id, document FROM record ORDER BY id"
            ).fetchall()
        except sqlite3.Error as error:
            raise self._error("cannot be read", error) from error
        for number, document in rows:
            try:
                yield Record.model_validate_json(document)
            except ValidationError as error:
                self.skipped.append(f"{self.path}: record {number}: {first_problem(error)}")
                _LOG.warning("skipped %s", self.skipped[-1])

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns.

        Raises
        ------
        TuningError
            If it cannot be written, as when the disk is full.
        """
        try:
            self._insert(record.model_dump_json(exclude_defaults=True))
        except sqlite3.Error as error:
            raise self._error("cannot be written to", error) from error

    def _prepare(self, header: Header) -> None:
        """Make the tables where the file is new."""
        with self._transaction():
            (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                self._create(header)
            marks = [self._pragma("application_id"), self._pragma("user_version")]
            if marks != [APPLICATION_ID, SCHEMA_VERSION]:
                raise sqlite3.DatabaseError(f"of another program or version: {marks}")
        # Where another process is at work the mode stays what that one makes it.
        with contextlib.suppress(sqlite3.OperationalError):
            self._pragma("journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")

    def _create(self, header: Header) -> None:
        older = _older(self.path, header)
        execute = self._connection.execute
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        execute("CREATE TABLE header (document TEXT NOT NULL)")
        execute("CREATE TABLE record (id INTEGER PRIMARY KEY, document TEXT NOT NULL)")
        execute("INSERT INTO header VALUES (?)", (header.model_dump_json(),))
        if older is not None:
            for record in older.records:
                self._insert(record.model_dump_json(exclude_defaults=True))
            self.skipped += older.skipped
            _LOG.info("took %d measurements over into %s", len(older.records), self.path)

    def _insert(self, document: str) -> None:
        self._connection.execute("INSERT INTO record (document) VALUES (?)", (document,))

    def _pragma(self, text: str) -> object:
        (value,) = self._connection.execute(f"PRAGMA {text}").fetchone()
        return value

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do all of it or nothing, alone."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _error(self, what: str, error: Exception) -> TuningError:
        reason = error.strerror if isinstance(error, OSError) else error
        return TuningError(
            f"the tuning database {self.path} {what}: {reason}; what was measured before is kept"
        )


def _older(path: Path, header: Header) -> Lines | None:
    """Return what JSON lines beside a file that is yet to be made have measured."""
    lines = path.with_suffix(LINES_SUFFIX)
    if not lines.is_file():
        return None
    found = read_lines(lines)
    _check_header(found.header, header, lines)
    return found


def _check_header(found: Header, wanted: Header, path: Path) -> None:
    """Refuse a file whose times mean something else; warn of another processor.

    Raises
    ------
    TuningError
        If target, threads or versions differ.
    """
    if not found.measures_as(wanted):
        raise TuningError(
            f"{path} was measured for {found.identity()}; wanted: {wanted.identity()}; name "
            "another folder, or remove the file to measure again"
        )
    if found.cpu != wanted.cpu:
        _LOG.warning(
            "%s was begun on %s, this is %s: their times may differ", path, found.cpu, wanted.cpu
        )


def _close(connection: sqlite3.Connection, process: int) -> None:
    """Close a connection; not in a process that was forked, which has no part in its locks."""
    if os.getpid() == process:
        connection.close()
