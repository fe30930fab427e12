import json
import math
import re
import shutil
from html import unescape

import pytest

import tvmquant.report.page
from tests.tvmquant.report.page import open_in_browser, parse
from tvmquant.deploy.destination import REPORT_NAME
from tvmquant.deploy.manifest import Manifest
from tvmquant.errors import ArtifactError, DataError
from tvmquant.mixed_precision import RECORD_NAME
from tvmquant.output_record import OUTPUTS_NAME, OutputEntry, OutputRecord
from tvmquant.report import write_report

HOSTILE = "</script><img src=x onerror=alert(1)> <b>x</b> &lt;"


@pytest.fixture
def library(mixed_library, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(mixed_library, tmp_path / "library")


def test_the_report_lies_in_the_folder(library):
    before = {path.name for path in library.iterdir()}
    path = write_report(library)
    assert path == library / REPORT_NAME
    assert {p.name for p in library.iterdir()} == before | {REPORT_NAME}
    page = parse(path.read_text(encoding="utf-8"))
    assert page.has("frontier")
    assert path.stat().st_size < 3e6


def test_another_place(library, tmp_path):
    assert write_report(library, tmp_path / "other.html") == tmp_path / "other.html"
    assert not (library / REPORT_NAME).exists()


def test_profile_times_every_layer(library):
    page = parse(write_report(library, profile=True).read_text(encoding="utf-8"))
    assert "On this machine, now" in page.all("main")[0].text


def test_outputs_of_this_build_only(library):
    sha256 = Manifest.load(library).library["sha256"]
    record = OutputRecord(
        library=sha256, items=8, outputs=[OutputEntry(name="o", sqnr_db=math.inf)]
    )
    record.save(library / OUTPUTS_NAME)
    assert OutputRecord.load(library / OUTPUTS_NAME) == record
    assert "equal" in write_report(library).read_text(encoding="utf-8")
    record.model_copy(update={"library": "0" * 64}).save(library / OUTPUTS_NAME)
    assert 'id="outputs"' not in write_report(library).read_text(encoding="utf-8")
    (library / OUTPUTS_NAME).write_text("{")
    with pytest.raises(DataError, match=r"output record .* compile the model again with --force"):
        write_report(library)


def damage(library, change):
    path = library / RECORD_NAME
    content = json.loads(path.read_text())
    path.write_text(change(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "{", "not a JSON file"),
        (lambda r: json.dumps({**r, "schema_version": 9}), "schema_version = 9"),
        (lambda r: json.dumps({**r, "fixed_ms": "slow"}), "fixed_ms = 'slow'"),
        (lambda r: json.dumps(r).replace('"choice": "w4a8"', '"choice": "w4a4"'), "has w4a8"),
        (lambda r: json.dumps(r).replace(r["layers"][0]["id"], "no"), "not one of this library"),
    ],
)
def test_a_damaged_record_leaves_the_old_report(library, change, message):
    write_report(library).write_text("old")
    damage(library, change)
    before = {path.name for path in library.iterdir()}
    with pytest.raises(DataError, match=message) as caught:
        write_report(library)
    assert RECORD_NAME in str(caught.value)
    assert "compile the model again" in str(caught.value)
    assert {path.name for path in library.iterdir()} == before
    assert (library / REPORT_NAME).read_text() == "old"


def test_what_is_no_library(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written(library, tmp_path):
    for out in (tmp_path / "no" / "such" / "folder.html", library):
        with pytest.raises(DataError, match="cannot be written"):
            write_report(library, out)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_an_interrupted_write_leaves_the_old_report(library, monkeypatch):
    write_report(library).write_text("old")
    before = {path.name for path in library.iterdir()}

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(library)
    assert (library / REPORT_NAME).read_text() == "old"
    assert {path.name for path in library.iterdir()} == before


@pytest.fixture
def opened(library, tmp_path):
    """The report of a library whose first layer has a name that is markup, in a browser."""
    for name in ("manifest.json", RECORD_NAME):
        path = library / name
        record = json.loads((library / RECORD_NAME).read_text())
        layer = record["layers"][0]["id"]
        if name == RECORD_NAME:
            continue
        path.write_text(path.read_text().replace(json.dumps(layer), json.dumps(HOSTILE)))
    damage(library, lambda r: json.dumps(r).replace(json.dumps(layer), json.dumps(HOSTILE)))
    return open_in_browser(write_report(library), tmp_path)


def test_a_browser_draws_every_plot(opened):
    assert 'data-plots="drawn"' in opened.html, opened.log
    assert opened.drawn() == [
        "plot-sensitivity", "plot-frontier", "plot-prediction", "plot-time", "plot-memory",
    ]  # fmt: skip
    assert len(re.findall(r'<g class="trace bars"', opened.html)) >= 6
    assert len(re.findall(r'<g class="trace scatter', opened.html)) >= 6
    # Errors of scripts and what the page's policy refuses are in the browser's log.
    assert "CONSOLE" not in opened.log
    page = opened.html[: opened.html.index('id="plotly"')]
    assert "needs JavaScript" not in page
    assert "<img" not in page
    assert HOSTILE in unescape(page)


def test_a_browser_that_cannot_unpack_keeps_the_tables(library, tmp_path, monkeypatch):
    monkeypatch.setattr(tvmquant.report.page, "_packed_plotly", lambda: "AAAA")
    opened = open_in_browser(write_report(library), tmp_path)
    assert 'data-plots="failed"' in opened.html
    assert "the plots cannot be drawn" in opened.log
    assert opened.html.count("This plot needs JavaScript") == 5
    assert "everything else" in opened.html
