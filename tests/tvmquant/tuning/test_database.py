"""The database of measurements: what it keeps, merges, skips and refuses."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tvmquant.tuning.kernels import conv, haswell, record
from tvmquant.errors import TuningError
from tvmquant.machine import Machine
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.tuning.database import Database, Timing


@pytest.fixture
def machine():
    return haswell()


@pytest.fixture
def database(tmp_path, machine):
    return Database(tmp_path, machine, cpu="a processor")


def tilings_of(workload, machine):
    return list(workload.tilings(machine).values())


def test_what_was_appended_is_there_after_opening_again(database, tmp_path, machine):
    workload = conv()
    first, second = tilings_of(workload, machine)[:2]
    records = [record(workload, first, default=True), record(workload, second, 5e-4)]
    for item in records:
        database.append(item)
    again = Database(tmp_path, machine, create=False, cpu="a processor")
    assert again.records() == database.records() == records
    assert again.best(workload.key).seconds == 5e-4
    assert again.default(workload.key).seconds == 1e-3
    assert not again.skipped


def test_targets_and_thread_counts_have_files_of_their_own(tmp_path, machine):
    databases = [
        Database(tmp_path, Machine.of(machine, 1)),
        Database(tmp_path, machine),
        Database(tmp_path, Machine.of("skylake", 2)),
        Database(tmp_path, Machine.of("llvm -mcpu=haswell -mattr=-fma", 2)),
    ]
    assert len({database.path for database in databases}) == len(databases)


def test_a_timing_is_the_median_of_its_measurements():
    workload = conv()
    tiling = tilings_of(workload, haswell())[0]
    times = [3e-3, 1e-3, 1.1e-3]
    timing = Timing.of([record(workload, tiling, seconds) for seconds in times])
    assert timing.seconds == 1.1e-3
    assert timing.trials == 3
    assert timing.spread == pytest.approx(2e-3 / 1.1e-3)
    assert Timing.of([record(workload, tiling, s) for s in times[:2]]).seconds == 1e-3


@pytest.mark.parametrize(("seconds", "taken"), [(9.8e-4, 1e-3), (9.6e-4, 9.6e-4)])
def test_the_default_stays_unless_it_is_clearly_beaten(database, machine, seconds, taken):
    workload = conv()
    first, second = tilings_of(workload, machine)[:2]
    database.append(record(workload, first, 1e-3, default=True))
    database.append(record(workload, second, seconds))
    assert database.best(workload.key).seconds == taken
    tiling = database.tilings()("conv2d", workload.spec, "layer")
    assert tiling == (first if taken == 1e-3 else second)


def test_failures_are_kept_but_never_the_best(database, machine):
    workload = conv()
    first, second = tilings_of(workload, machine)[:2]
    database.append(record(workload, first, None))
    assert database.best(workload.key) is None
    database.append(record(workload, second))
    assert database.best(workload.key).tiling == record(workload, second).tiling


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_torn_last_line_is_dropped(database, tmp_path, machine, cut):
    workload = conv()
    for tiling in tilings_of(workload, machine)[:3]:
        database.append(record(workload, tiling))
    whole = database.path.read_bytes()
    database.path.write_bytes(whole[:-cut])
    again = Database(tmp_path, machine, cpu="a processor")
    assert len(again) == 2
    assert not again.skipped
    again.append(record(workload, tilings_of(workload, machine)[3]))
    assert len(Database(tmp_path, machine, cpu="a processor")) == 3


@given(length=st.integers(0, 2000))
def test_any_beginning_of_a_file_opens(tmp_path_factory, length):
    folder = tmp_path_factory.mktemp("database")
    machine, workload = haswell(), conv()
    database = Database(folder, machine, cpu="a processor")
    for tiling in tilings_of(workload, machine)[:3]:
        database.append(record(workload, tiling))
    whole = database.path.read_bytes()
    database.path.write_bytes(whole[:length])
    again = Database(folder, machine, cpu="a processor")
    assert len(again) == max(0, whole[:length].count(b"\n") - 1)


def test_another_process_dying_in_the_middle_of_a_line_costs_that_line_only(database, machine):
    workload = conv()
    first, second = tilings_of(workload, machine)[:2]
    database.append(record(workload, first))
    with database.path.open("ab") as file:
        file.write(b'{"key": "torn')
    database.append(record(workload, second))
    lines = database.path.read_text().splitlines()
    assert len(lines) == 3
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("garbage", "JSON"),
        ('{"key": "k"}', "family"),
        (
            '{"key":"k","family":"conv2d","spec":{},"tiling":{},"seconds":-1,"time":"t","cpu":"c"}',
            "seconds = -1",
        ),
        (
            '{"key":"k","family":"conv2d","spec":{},"tiling":{},"time":"t","cpu":"c"}',
            "either seconds or error",
        ),
    ],
)
def test_a_corrupted_record_is_skipped_and_named(database, tmp_path, machine, caplog, line, reason):
    workload = conv()
    first, second = tilings_of(workload, machine)[:2]
    database.append(record(workload, first))
    with database.path.open("a") as file:
        file.write(line + "\n")
    database.append(record(workload, second))
    again = Database(tmp_path, machine, cpu="a processor")
    assert len(again) == 2
    (skipped,) = again.skipped
    assert skipped.startswith(f"{database.path}:3: ")
    assert reason in skipped
    assert skipped in caplog.text


def test_a_file_of_another_target_or_version_is_refused(tmp_path, machine):
    database = Database(tmp_path, machine)
    other = Database(tmp_path, Machine.of("skylake", 2))
    os.replace(other.path, database.path)
    with pytest.raises(TuningError, match=r"measured for target .*skylake.*wanted: .*haswell"):
        Database(tmp_path, machine)
    header = json.loads(other_header := database.path.read_text())
    assert other_header
    header["target"]["mcpu"] = "haswell"
    header["versions"]["tvm"] = "0.1"
    database.path.write_text(json.dumps(header) + "\n")
    with pytest.raises(TuningError, match=r"tvm 0\.1.*wanted.*tvm 0\.27"):
        Database(tmp_path, machine)


@pytest.mark.parametrize("content", ["", "no database\n", '{"schema_version": 2}\n'])
def test_what_is_no_database_is_refused_unless_empty(tmp_path, machine, content):
    path = Database(tmp_path, machine).path
    path.write_text(content)
    if not content:
        assert len(Database(tmp_path, machine)) == 0
        return
    with pytest.raises(TuningError, match=r":1: .*name another folder"):
        Database(tmp_path, machine)


def test_a_missing_file_names_what_is_there(tmp_path, machine):
    Database(tmp_path, machine)
    with pytest.raises(TuningError, match=r"4 threads.*found: haswell-\w+-2threads"):
        Database(tmp_path, Machine.of(machine, 4), create=False)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, machine):
    (tmp_path / "file").touch()
    with pytest.raises(TuningError, match="cannot be opened"):
        Database(tmp_path / "file", machine)


def test_another_processor_of_the_same_target_is_mentioned(database, tmp_path, machine, caplog):
    Database(tmp_path, machine, cpu="another one")
    assert "was begun on a processor, this is another one" in caplog.text


def test_merging_adds_what_is_missing(tmp_path, machine):
    workload = conv()
    first, second, third = tilings_of(workload, machine)[:3]
    here, there = (Database(tmp_path / name, machine) for name in ("here", "there"))
    for item in (record(workload, first), record(workload, second)):
        here.append(item)
        there.append(item)
    there.append(record(workload, third, 1e-4))
    assert here.merge(there) == 1
    assert here.merge(there) == 0
    assert here.best(workload.key).seconds == 1e-4
    with pytest.raises(TuningError, match="cannot be merged"):
        here.merge(Database(tmp_path, Machine.of(machine, 1)))


def test_tilings_are_the_best_measured_ones(database, machine):
    workload = conv()
    tilings = tilings_of(workload, machine)
    for index, tiling in enumerate(tilings[:3]):
        database.append(record(workload, tiling, 1e-3 / (index + 1), default=index == 0))
    lookup = database.tilings()
    assert lookup("conv2d", workload.spec, "layer") == tilings[2]
    # mere values do not matter, and where only the epilogue differs the tiling serves too
    moved = dataclasses.replace(workload.spec, input_zero_point=99)
    assert lookup("conv2d", moved, "layer") == tilings[2]
    wide = dataclasses.replace(workload.spec, epilogue=Epilogue("int64", "uint8", 0, 255))
    assert lookup("conv2d", wide, "layer") == tilings[2]
    assert lookup("conv2d", conv(32).spec, "other layer") is None


def test_a_tiling_that_is_not_offered_is_never_used(database, machine, caplog):
    workload = conv()
    first, second = tilings_of(workload, machine)[:2]
    database.append(record(workload, first, default=True))
    fast = record(workload, second, 1e-6)
    database.append(fast.model_copy(update={"tiling": {**fast.tiling, "column_tile": 999}}))
    assert database.tilings()("conv2d", workload.spec, "layer") == first
    assert "does not offer the tiling" in caplog.text


def write_for_ever(folder, machine, sender):
    workload = conv()
    tilings = tilings_of(workload, machine)
    database = Database(folder, machine, cpu="a processor")
    for number in itertools.count():
        database.append(record(workload, tilings[number % len(tilings)]))
        sender.send_bytes(b"1")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_writers_killed_at_any_moment_lose_nothing_that_was_appended(tmp_path, machine):
    """Two processes append to one file and are killed, again and again."""
    context = multiprocessing.get_context("fork")
    acknowledged = 0
    for delay in np.random.default_rng(0).uniform(0, 0.05, 12):
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        writers = [
            context.Process(target=write_for_ever, args=(tmp_path, machine, sender), daemon=True)
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
        database = Database(tmp_path, machine, cpu="a processor")
        assert not database.skipped
        # a writer may have died between the disk and its answer
        assert acknowledged <= len(database) <= acknowledged + 2
        acknowledged = len(database)
