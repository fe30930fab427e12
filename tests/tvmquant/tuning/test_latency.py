"""The latency table: from the database, to JSON and CSV, merged, and what it lacks."""

import csv
import json

import pandas
import pytest

from tests.tvmquant.tuning.kernels import conv, depthwise, haswell, record
from tvmquant.errors import DataError, TuningError
from tvmquant.tuning.database import Database
from tvmquant.tuning.latency import LatencyTable

LAYERS = {
    "first": {"w8a8": conv(16), "w4a4": conv(32)},
    "second": {"w8a8": conv(16)},
    "third": {"w8a8": depthwise()},
}


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path, haswell(), cpu="a processor")
    for workload, milliseconds in ((conv(16), 4.0), (conv(32), 2.0)):
        default, other = list(workload.tilings(haswell()).values())[:2]
        for noise in (1.0, 1.02, 1.01):
            database.append(record(workload, default, 1.5e-3 * milliseconds, default=True))
            database.append(record(workload, other, 1e-3 * milliseconds * noise))
    return database


@pytest.fixture
def table(database):
    return LatencyTable.collect(database, "model", LAYERS)


def entry_by_place(table):
    return {entry.place: entry for entry in table.entries}


def test_entries_say_what_was_measured(table):
    entries = entry_by_place(table)
    entry = entries["model", "first", "w8a8"]
    assert entry.median_ms == pytest.approx(4.04)
    assert entry.default_ms == pytest.approx(6.0)
    assert entry.gain == pytest.approx(6 / 4.04)
    assert entry.spread == pytest.approx(0.08 / 4.04)
    assert entry.trials == 3
    assert entries["model", "first", "w4a4"].median_ms == pytest.approx(2.02)
    # layers of one workload share its measurements
    assert entries["model", "second", "w8a8"].workload == entry.workload == conv(16).key


def test_what_was_not_measured_has_no_entry(table):
    assert sorted(entry_by_place(table)) == [
        ("model", "first", "w4a4"), ("model", "first", "w8a8"), ("model", "second", "w8a8"),
    ]  # fmt: skip


def test_json_gives_the_same_table_back(table, tmp_path):
    table.to_json(tmp_path / "latency.json")
    assert LatencyTable.from_json(tmp_path / "latency.json") == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema_version = 9"),
        ({"threads": 0}, "threads = 0"),
        ({"entries": [{"layer": "x"}]}, r"entries\.0\.model"),
    ],
)
def test_a_damaged_file_is_named_with_its_field(table, tmp_path, change, message):
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({**table.model_dump(mode="json"), **change}))
    with pytest.raises(DataError, match=message):
        LatencyTable.from_json(path)


def test_csv_has_one_line_for_each_entry(table, tmp_path):
    path = tmp_path / "latency.csv"
    table.to_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["choice"]) for row in rows] == [
        ("first", "w8a8"),
        ("first", "w4a4"),
        ("second", "w8a8"),
    ]
    assert float(rows[0]["median_ms"]) == table.entries[0].median_ms
    assert float(rows[0]["gain"]) == table.entries[0].gain
    assert json.loads(rows[0]["target"])["mcpu"] == "haswell"
    assert rows[0]["tvm_version"].startswith("0.27")


def test_pandas_reads_the_csv(table, tmp_path):
    table.to_csv(tmp_path / "latency.csv")
    frame = pandas.read_csv(tmp_path / "latency.csv")
    assert frame.groupby("choice").median_ms.sum()["w4a4"] == pytest.approx(2.02)


def test_entries_of_an_older_table_stay_where_there_are_no_new_ones(table, database):
    other = LatencyTable.collect(database, "other", {"first": {"w8a8": conv(32)}})
    both = table.completed_by(other)
    assert both.entries == (*table.entries, *other.entries)
    measured_again = table.entries[0].model_copy(update={"median_ms": 3.0})
    newer = table.model_copy(update={"entries": (measured_again,)})
    assert newer.completed_by(table).entries == (measured_again, *table.entries[1:])


@pytest.mark.parametrize("field", ["threads", "target", "versions"])
def test_tables_that_do_not_fit_are_not_joined(table, field):
    other = table.model_copy(update={field: {"threads": 5}.get(field, {"kind": "else"})})
    with pytest.raises(TuningError, match=f"different {field} cannot be merged"):
        table.completed_by(other)


def test_a_place_that_cannot_be_written_is_an_error(table, tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        table.to_csv(tmp_path / "nowhere" / "latency.csv")
