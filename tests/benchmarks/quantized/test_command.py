"""The rows about files that other tools quantized."""

import json
import sys

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import latency
from benchmarks.quantized.agreement import Agreement

METRICS = ("equal", "layers_equal", "float64_equal", "float64_layers_equal")


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


@pytest.fixture
def recipes(tmp_path):
    path = tmp_path / "table.toml"
    path.write_text('["sm*.onnx"]\ndata = "walks"\n')
    return path


def test_rows_compare_every_evaluation_of_a_file(
    small_onnx, recipes, tmp_path, monkeypatch, capsys
):
    # importing everything anew in other processes would take most of the time
    monkeypatch.setattr(latency, "in_new_process", lambda function, job: function(job))
    kept, out = tmp_path / "kept", tmp_path / "rows.json"
    options = ("--table", recipes, "--folder", kept, "--threads", 1, "--items", 2)
    measured = ("--repeats", 4, "--peers", "onnxruntime", "--json", out)
    chosen = ("--models", small_onnx, "--configs", "u8s8-channel")
    assert call(monkeypatch, "quantized", *chosen, *options, *measured) == 0
    rows = json.loads(out.read_text())
    assert {row["quantization"] for row in rows} == {"u8s8-channel"}

    def values(metric):
        return {row["config"]: row["value"] for row in rows if row["metric"] == metric}

    evaluations = ["tvmquant-int8", "onnxruntime-int8", "onnxruntime-2-threads", "float64"]
    assert values("works") == dict.fromkeys(evaluations, 1.0)
    for metric in METRICS:
        assert set(values(metric)) <= set(evaluations)
        assert values(metric)["tvmquant-int8"] > 99
    assert values("equal")["float64"] > 99
    for metric in ("float_operators", "lost_operators", "simulation_differs"):
        assert values(metric) == {"tvmquant-int8": 0}
    assert set(values("latency_ms")) == {"tvmquant-int8", "onnxruntime-int8"}
    assert "ratio_to_best_peer" in {row["metric"] for row in rows}
    assert "u8s8-channel" in capsys.readouterr().out

    # the file is kept, and is a quantized file like one of a user
    (quantized,) = kept.glob("*.onnx")
    before = quantized.stat().st_mtime_ns
    chosen = ("--models", small_onnx, "--configs", "u8s8-channel")
    assert call(monkeypatch, "quantized", *chosen, *options, "--repeats", 0, "--peers", "") == 0
    assert quantized.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "no.onnx"), "no.onnx is not there"),
        (("--models", "vgg"), "'vgg' is unknown"),
        (("--models", "unet", "--configs", "w3"), "--configs: 'w3' is unknown"),
        (("--models", "unet", "--peers", "tflite"), "--peers: 'tflite' is unknown"),
    ],
)
def test_what_is_not_there_is_named_before_anything_runs(
    arguments, message, tmp_path, monkeypatch, capsys
):
    folder = ("--folder", tmp_path / "kept")
    assert call(monkeypatch, "quantized", *arguments, *folder) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "kept").exists()


def test_agreements_add_up():
    found = Agreement(8, 1, 3) + Agreement(8, 3, 1)
    assert found == Agreement(16, 4, 3)
    assert found.share == 75
    assert np.isnan(Agreement().share)
