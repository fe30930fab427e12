import sys

import pytest

from tvmquant.benchmark import Latency
from tvmquant.demo import Demo
from tvmquant.evaluation import Evaluation

FOUND = Demo(
    evaluation=Evaluation(360, 99.0, 100.0, 99.5, 100.0, 99.2, 38.5),
    latencies={name: Latency((0.001,)) for name in ("library", "float", "float_torch")},
    bytes={"library": 470_000, "float": 540_000},
    float_operators=0,
    seconds=20.0,
)


@pytest.fixture
def folders(monkeypatch):
    """Replace the demo, tested by itself, by its result; return the folders it was asked for."""
    seen = []
    monkeypatch.setattr("tvmquant.demo.run_demo", lambda out, **_: seen.append(out) or FOUND)
    return seen


def test_the_table_compares_three_networks(tvmquant, folders, tmp_path):
    text = tvmquant("demo", "-o", tmp_path).stdout
    assert folders == [tmp_path]
    assert "0 float operators" in text
    cells = "float, PyTorch", "float, tvmquant", "int8, tvmquant", "99.20 %", "0.47 MB", "1.000 ms"
    assert all(cell in text for cell in cells)


def test_json_is_one_document(tvmquant, folders):
    report = tvmquant("demo", "--json").json()
    assert str(folders[0]) == report["out"] == "tvmquant-demo"
    assert report["top1"] == 99.0
    assert report["latency"]["library"]["median_ms"] == 1.0


def test_without_scikit_learn(tvmquant, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    outcome = tvmquant("demo", "-o", tmp_path / "out", code=2)
    assert "pip install 'tvmquant[demo]'" in outcome.stderr
