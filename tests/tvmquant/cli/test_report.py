import json
import shutil

import pytest


@pytest.fixture
def library(small_library, tmp_path):
    """A copy that a test may write to."""
    return shutil.copytree(small_library, tmp_path / "library")


def test_report_prints_where_it_is(tvmquant, library):
    outcome = tvmquant("report", library)
    assert outcome.stdout.replace("\n", "") == str(library / "report.html")
    page = (library / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "compiled without a plan" in page


def test_json_is_one_document(tvmquant, library, tmp_path):
    out = tmp_path / "page.html"
    found = tvmquant("report", library, "--out", out, "--profile", "--json", "--quiet").json()
    assert found == {"library": str(library), "report": str(out), "bytes": out.stat().st_size}
    assert "On this machine, now" in out.read_text()


def test_wrong_input_writes_nothing(tvmquant, library, tmp_path):
    assert "no such folder" in tvmquant("report", tmp_path / "nothing", code=2).stderr
    record = library / "mixed-precision.json"
    for text, message in (("{", "not a JSON file"), (json.dumps({}), "schema_version = None")):
        record.write_text(text)
        outcome = tvmquant("report", library, code=2)
        assert message in outcome.stderr
        assert "mixed-precision.json" in outcome.stderr
        assert outcome.stdout == ""
    assert not (library / "report.html").exists()
    record.unlink()
    out = tmp_path / "no" / "page.html"
    assert "cannot be written" in tvmquant("report", library, "-o", out, code=2).stderr
