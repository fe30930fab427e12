import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tvmquant.tuning.kernels import conv, haswell, record, write_lines
from tvmquant.errors import TuningError
from tvmquant.tuning.json_lines import read_lines
from tvmquant.tuning.record import Header

MACHINE, WORKLOAD = haswell(), conv()
RECORDS = [record(WORKLOAD, tiling) for tiling in list(WORKLOAD.tilings(MACHINE).values())[:3]]


@pytest.fixture
def path(tmp_path):
    return write_lines(tmp_path / "table", MACHINE, RECORDS)


def test_header_and_records_are_read(path):
    found = read_lines(path)
    assert found.header == Header.of(MACHINE, "a processor")
    assert found.records == RECORDS
    assert not found.skipped


@given(length=st.integers(0, 4000))
def test_a_torn_last_line_is_left_out(tmp_path_factory, length):
    path = write_lines(tmp_path_factory.mktemp("lines") / "table", MACHINE, RECORDS)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    lines = whole[:length].count(b"\n")
    if not lines:
        with pytest.raises(TuningError, match=r":1: .*name another folder"):
            read_lines(path)
        return
    found = read_lines(path)
    assert found.records == RECORDS[: lines - 1]
    assert not found.skipped


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
def test_a_corrupted_line_is_skipped_and_named(path, caplog, line, reason):
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, lines[0], line, *lines[1:], ""]))
    found = read_lines(path)
    assert found.records == RECORDS
    (skipped,) = found.skipped
    assert skipped.startswith(f"{path}:3: ")
    assert reason in skipped
    assert skipped in caplog.text


@pytest.mark.parametrize("content", ["", "no database\n", '{"schema_version": 2}\n'])
def test_what_is_no_table_is_refused(path, content):
    path.write_text(content)
    with pytest.raises(TuningError, match=r":1: .*name another folder"):
        read_lines(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TuningError, match="cannot be read: No such"):
        read_lines(tmp_path / "nothing.jsonl")
