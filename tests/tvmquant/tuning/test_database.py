"""The database of measurements: what they say of a kernel, and which tiling a build takes."""

import dataclasses

import pytest

from tests.tvmquant.tuning.kernels import conv, haswell, record, write_lines
from tvmquant.errors import TuningError
from tvmquant.machine import Machine
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.tuning.database import Database, file_name
from tvmquant.tuning.record import Timing


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


def test_a_missing_file_names_what_is_there(tmp_path, machine):
    Database(tmp_path, machine)
    with pytest.raises(TuningError, match=r"4 threads.*found: haswell-\w+-2threads"):
        Database(tmp_path, Machine.of(machine, 4), create=False)


def test_tables_of_json_lines_are_there_too(tmp_path, machine):
    path = tmp_path / file_name(machine)
    write_lines(path, machine, [record(conv(), tiling) for tiling in tilings_of(conv(), machine)])
    with pytest.raises(TuningError, match=r"4 threads.*found: haswell-\w+-2threads\)"):
        Database(tmp_path, Machine.of(machine, 4), create=False)
    assert len(Database(tmp_path, machine, create=False)) == len(tilings_of(conv(), machine))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, machine):
    (tmp_path / "file").touch()
    with pytest.raises(TuningError, match="cannot be opened"):
        Database(tmp_path / "file", machine)


def test_another_processor_of_the_same_target_is_mentioned(database, tmp_path, machine, caplog):
    Database(tmp_path, machine, cpu="another one")
    assert "was begun on a processor, this is another one" in caplog.text


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
