"""The file of records: what it keeps whatever happens, takes over, and refuses."""

import contextlib
import itertools
import multiprocessing
import sqlite3
import time

import numpy as np
import pytest

from tests.tvmquant.tuning.kernels import conv, haswell, record, write_lines
from tvmquant.errors import TuningError
from tvmquant.machine import Machine
from tvmquant.tuning.record import Header
from tvmquant.tuning.record_file import RecordFile

MACHINE, WORKLOAD = haswell(), conv()
RECORDS = [record(WORKLOAD, tiling) for tiling in list(WORKLOAD.tilings(MACHINE).values())[:3]]
HEADER = Header.of(MACHINE, "a processor")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "table.sqlite"


def opened(path, header=HEADER):
    return RecordFile(path, header)


def read(path):
    file = opened(path)
    found = list(file.records())
    assert not file.skipped
    return found


def test_what_was_appended_is_read_in_order(path):
    file = opened(path)
    assert list(file.records()) == []
    for item in RECORDS:
        file.append(item)
    assert list(file.records()) == read(path) == RECORDS
    assert opened(path).header == HEADER


def test_a_closed_file_is_one_file(path):
    file = opened(path)
    file.append(RECORDS[0])
    del file
    assert list(path.parent.iterdir()) == [path]
    assert read(path) == RECORDS[:1]


def test_lines_are_taken_over_once(path):
    path.parent.mkdir()
    lines = write_lines(path, MACHINE, RECORDS[:2])
    before = lines.read_bytes()
    file = opened(path)
    assert list(file.records()) == RECORDS[:2]
    file.append(RECORDS[2])
    assert read(path) == RECORDS
    assert lines.read_bytes() == before


def test_lines_that_cannot_be_read_are_named(path):
    path.parent.mkdir()
    lines = write_lines(path, MACHINE, RECORDS)
    lines.write_text(lines.read_text() + "garbage\n")
    file = opened(path)
    assert list(file.records()) == RECORDS
    (skipped,) = file.skipped
    assert skipped.startswith(f"{lines}:5: ")


def test_lines_of_another_version_are_refused_and_nothing_is_made(path):
    path.parent.mkdir()
    lines = write_lines(path, MACHINE, RECORDS)
    lines.write_text(lines.read_text().replace(HEADER.versions["tvm"], "0.1", 1))
    with pytest.raises(TuningError, match=r"tvm 0\.1.*wanted.*tvm 0\.27"):
        opened(path)
    assert list(path.parent.iterdir()) == [lines]


@pytest.mark.parametrize(
    "header",
    [
        Header.of(Machine.of("skylake", 2), "a processor"),
        Header.of(Machine.of(MACHINE, 1), "a processor"),
        HEADER.model_copy(update={"versions": HEADER.versions | {"tvm": "0.1"}}),
    ],
)
def test_a_file_of_another_target_or_version_is_refused(path, header):
    opened(path).append(RECORDS[0])
    with pytest.raises(TuningError, match=r"was measured for target .*haswell.*wanted: "):
        opened(path, header)
    assert read(path) == RECORDS[:1]


def test_another_processor_of_the_same_target_is_mentioned(path, caplog):
    opened(path)
    opened(path, Header.of(MACHINE, "another one"))
    assert "was begun on a processor, this is another one" in caplog.text


def foreign_database(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")


def later_version(path):
    opened(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")


def cut_in_half(path):
    file = opened(path)
    for item in RECORDS * 20:
        file.append(item)
    del file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("no database at all, but long enough for a header of one" * 9),
        foreign_database,
        later_version,
        cut_in_half,
    ],
)
def test_what_is_no_database_is_refused_and_left_alone(path, spoil):
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(TuningError, match=r"table.sqlite.*"):
        list(opened(path).records())
    assert path.read_bytes() == before


def test_an_empty_file_is_a_new_one(path):
    path.parent.mkdir()
    path.touch()
    assert read(path) == []


def test_a_record_that_cannot_be_read_is_skipped_and_named(path, caplog):
    file = opened(path)
    file.append(RECORDS[0])
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO record (document) VALUES ('{}')")
    file.append(RECORDS[1])
    assert list(file.records()) == RECORDS[:2]
    (skipped,) = file.skipped
    assert skipped.startswith(f"{path}: record 2: key: ")
    assert skipped in caplog.text


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TuningError, match="cannot be opened: "):
        opened(tmp_path / "file" / "table.sqlite")


def test_a_full_disk_is_an_error_and_what_was_measured_stays(path):
    file = opened(path)
    file.append(RECORDS[0])
    # as many pages as there are: SQLite then says that the disk is full
    (pages,) = file._connection.execute("PRAGMA page_count").fetchone()
    file._connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill():
        for _ in range(1000):
            file.append(RECORDS[1])

    with pytest.raises(TuningError, match=r"cannot be written to.*full; what was measured.*kept"):
        fill()
    assert read(path)[0] == RECORDS[0]


def open_at_once(path, gate, answers):
    gate.wait()
    try:
        file = opened(path)
        file.append(RECORDS[0])
        answers.put("done")
    except TuningError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_may_make_a_file_at_the_same_time(path):
    path.parent.mkdir()
    write_lines(path, MACHINE, RECORDS)
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=open_at_once, args=(path, gate, answers), daemon=True)
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == ["done"] * 4
    for process in processes:
        process.join()
    assert len(read(path)) == len(RECORDS) + 4


def write_for_ever(path, sender):
    file = opened(path)
    for item in itertools.cycle(RECORDS):
        file.append(item)
        sender.send_bytes(b"1")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_writers_killed_at_any_moment_lose_nothing_that_was_appended(path):
    """Two processes append to one file and are killed, again and again."""
    context = multiprocessing.get_context("fork")
    acknowledged = 0
    for delay in np.random.default_rng(0).uniform(0, 0.03, 6):
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        writers = [
            context.Process(target=write_for_ever, args=(path, sender), daemon=True)
            for _, sender in pipes
        ]
        for writer, (receiver, sender) in zip(writers, pipes, strict=True):
            writer.start()
            sender.close()
            assert receiver.recv_bytes() == b"1"
            acknowledged += 1
        time.sleep(delay)
        for writer in writers:
            writer.kill()
        for writer, (receiver, _) in zip(writers, pipes, strict=True):
            writer.join()
            with contextlib.suppress(EOFError):
                while receiver.recv_bytes():
                    acknowledged += 1
        found = len(read(path))
        # a writer may have died between the disk and its answer
        assert acknowledged <= found <= acknowledged + 2
        acknowledged = found
