import shutil

import pytest

from tvmquant.calibration.observers import _OBSERVERS


def test_compile_builds_a_library_and_summarizes_it(tvmquant, small_onnx, small_data, tmp_path):
    out = tmp_path / "out"
    outcome = tvmquant("compile", small_onnx, "--data", small_data, "-o", out, "--threads", 1)
    assert (out / "model.so").exists()
    assert "small" in outcome.stdout
    assert "0 operators in float" in outcome.stdout
    for stage in ("load", "calibrate", "quantize", "build"):
        assert f"{stage}: " in outcome.stderr


def test_json_is_one_document(tvmquant, small_onnx, small_data, small_library, tmp_path):
    out = shutil.copytree(small_library, tmp_path / "out")
    command = ["compile", small_onnx, "--data", small_data, "-o", out, "--threads", 1]
    summary = tvmquant(*command, "--json").json()
    assert summary["up_to_date"]
    assert summary["float_audit"] == []
    assert summary["library_bytes"] == (out / "model.so").stat().st_size
    again = tvmquant(*command, "--json", "--quiet", "--force")
    assert again.json()["calibration_cached"]
    assert not again.json()["up_to_date"]
    assert again.stderr == ""


def test_compile_without_data_says_what_to_pass(tvmquant, small_onnx):
    assert "pass --data a folder or .tar" in tvmquant("compile", small_onnx, code=2).stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--data", "nowhere", "'nowhere' does not exist"),
        ("--preprocess", "nonsense", "neither a preset"),
        ("--select", "step=0", "step = 0"),
        ("--target", "-mcpu=nonsense", "nonsense"),
        ("--calibration-method", "best", "expected one of minmax"),
        ("--input-shape", "x=1,3,-8,8", "expected NAME=N,C,H,W"),
        ("--input-shape", "y=1,3,8,8", "'y'"),
        ("--samples", "0", "--samples"),
        ("--batch", "0", "--batch"),
    ],
)
def test_wrong_options(tvmquant, small_onnx, small_data, tmp_path, option, value, message):
    data = [] if option == "--data" else ["--data", small_data]
    out = tmp_path / "out"
    command = ["compile", small_onnx, *data, option, value, "-o", out]
    outcome = tvmquant(*command, code=2)
    assert message in outcome.stderr
    assert outcome.stdout == ""
    assert not (out / "manifest.json").exists()


def test_a_file_that_is_no_model(tvmquant, small_data, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    outcome = tvmquant("compile", path, "--data", small_data, "-o", tmp_path / "out", code=2)
    assert "not an ONNX file" in outcome.stderr
    assert (
        "nowhere.onnx" in tvmquant("compile", "nowhere.onnx", "--data", small_data, code=2).stderr
    )


def test_the_help_names_every_calibration_method(tvmquant, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = tvmquant("compile", "--help").stdout
    assert all(method in text for method in _OBSERVERS)
