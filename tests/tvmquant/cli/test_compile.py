import json
import shutil

import pytest

from tvmquant.allocation import Plan
from tvmquant.calibration.observers import _OBSERVERS
from tvmquant.machine import Machine
from tvmquant.mixed_precision import MixedPrecisionRecord
from tvmquant.tuning import Database


def test_compile_builds_a_library_and_summarizes_it(tvmquant, small_onnx, small_data, tmp_path):
    out = tmp_path / "out"
    outcome = tvmquant("compile", small_onnx, "--data", small_data, "-o", out, "--threads", 1)
    assert (out / "model.so").exists()
    assert "small" in outcome.stdout
    assert "0 operators in float" in outcome.stdout
    assert " dB" in outcome.stdout
    for stage in ("load", "calibrate", "quantize", "build", "compare"):
        assert f"{stage}: " in outcome.stderr


def test_json_is_one_document(tvmquant, small_onnx, small_data, small_library, tmp_path):
    out = shutil.copytree(small_library, tmp_path / "out")
    command = ["compile", small_onnx, "--data", small_data, "-o", out, "--threads", 1]
    summary = tvmquant(*command, "--json").json()
    assert summary["up_to_date"]
    assert summary["float_audit"] == summary["untuned"] == []
    assert [output["sqnr_db"] > 25 for output in summary["outputs"]] == [True]
    assert summary["library_bytes"] == (out / "model.so").stat().st_size
    again = tvmquant(*command, "--json", "--quiet", "--force")
    assert again.json()["calibration_cached"]
    assert not again.json()["up_to_date"]
    assert again.stderr == ""


def test_compile_without_data_says_what_to_pass(tvmquant, small_onnx):
    assert "pass --data a folder or .tar" in tvmquant("compile", small_onnx, code=2).stderr


def test_ranges_found_at_run_time_need_no_data(tvmquant, small_onnx, tmp_path):
    out = tmp_path / "library"
    command = ["compile", small_onnx, "--dynamic", "-o", out, "--threads", 1, "--json"]
    first, again = (tvmquant(*command).json() for _ in range(2))
    layers = sum(first["bits"].values())
    assert first["bits"] == again["bits"] == {"w8a8 dynamic": layers}
    assert (first["up_to_date"], again["up_to_date"]) == (False, True)
    library = tvmquant("inspect", out, "--json").json()
    model = tvmquant("inspect", small_onnx, "--dynamic", "--threads", 1, "--json").json()
    assert library["layers"] == model["layers"]
    assert sum(layer["dynamic"] for layer in model["layers"]) == layers
    assert tvmquant("inspect", out).stdout.count("w8a8 dynamic") == layers
    tvmquant("report", out, "-o", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<small>dynamic</small>") == layers


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


# -- mixed precision -----------------------------------------------------------------------------

BUDGET = ["--size", "0.85x", "--choices", "w4a8", "--sensitivity", "output"]


@pytest.fixture
def mixed(branches_onnx, branches_data, branches_library, tmp_path):
    """A command that compiles into a copy of a library, and the copy."""
    out = shutil.copytree(branches_library, tmp_path / "mixed")
    return ["compile", branches_onnx, "--data", branches_data, "-o", out, "--threads", 1], out


def test_a_plan_is_summarized(tvmquant, mixed):
    command, _ = mixed
    text = " ".join(tvmquant(*command, *BUDGET).stdout.split())
    assert "is up to date" in text
    assert "layers by bits 4 w8a8, 1 w4a8" in text
    for row in ("latency predicted", "latency measured", "prediction off by", "weights"):
        assert row in text


@pytest.mark.usefixtures("brief_timing")
def test_every_option_reaches_the_plan(tvmquant, mixed):
    command, out = mixed
    options = [
        "--latency", "10s", "--size", "0.9x", "--bops", "0.95x", "--choices", "w4a4",
        "--pin", "right=w4a4", "--free-ends", "--sensitivity", "random",
    ]  # fmt: skip
    outcome = tvmquant(*command, *options, "--force", "--json")
    summary = outcome.json()
    record = MixedPrecisionRecord.load(out / "mixed-precision.json")
    assert summary["plan"] == record.chosen.model_dump()
    assert summary["reference"]["name"] == "w8a8"
    assert record.budgets == {"latency": "10s", "size": "0.9x", "bops": "0.95x"}
    assert record.sensitivity == "random"
    choices = {name: str(choice) for name, choice in Plan.load(out / "plan.json").choices.items()}
    assert choices["right"] == "w4a4"
    assert choices["left"].endswith("a4")
    assert set(record.layers[0].milliseconds) == {"w8a8", "w4a4"}
    assert sum(summary["bits"].values()) == len(choices)
    for stage in ("sensitivity", "latency", "allocate", "measure"):
        assert f"{stage}: " in outcome.stderr


def test_layers_that_a_table_lacks_are_listed(tvmquant, mixed, tmp_path):
    command, out = mixed
    Database(tmp_path / "table", Machine.of("native", 1))
    options = ["--plan", out / "plan.json", "--table", tmp_path / "table", "--force"]
    text = tvmquant(*command, *options).stderr
    assert "has no measurements of 5 layers (stem, left, right, depthwise, head)" in text
    outcome = tvmquant(*command, *options, "--json", "--quiet")
    assert outcome.json()["untuned"] == ["stem", "left", "right", "depthwise", "head"]
    assert outcome.stderr == ""
    assert tvmquant(*command, *options, "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("option", "expected"), [("--portable", "bounded in 3 of 5 layers"), ("--free-weights", "free")]
)
def test_how_weights_are_rounded_is_told(
    tvmquant, branches_onnx, branches_data, tmp_path, option, expected
):
    out = tmp_path / "out"
    command = ["compile", branches_onnx, "--data", branches_data, "-o", out, "--threads", 1]
    assert tvmquant(*command, option, "--json").json()["weight_pairs"] == expected
    text = tvmquant("inspect", out).stdout
    (line,) = (line for line in text.splitlines() if "pairs of weights" in line)
    assert line.split("weights")[1].strip() == expected


def test_a_plan_is_built(tvmquant, mixed, tmp_path):
    command, out = mixed
    plan = shutil.copy(out / "plan.json", tmp_path)
    summary = tvmquant(*command, "--plan", plan, "--force", "--json").json()
    assert summary["bits"] == {"w8a8": 4, "w4a8": 1}
    assert summary["plan"] is None
    assert Plan.load(out / "plan.json").layers == Plan.load(plan).layers


def test_groups_of_weights_are_told(tvmquant, mixed, tmp_path):
    command, out = mixed
    plan = tmp_path / "plan.json"
    plan.write_text((out / "plan.json").read_text().replace("w4a8", "w4a8g32"))
    summary = tvmquant(*command, "--plan", plan, "--force", "--json").json()
    assert summary["bits"] == {"w8a8": 4, "w4a8g32": 1}


def test_a_plan_may_hold_layers_of_a_few_bits(tvmquant, mixed, tmp_path):
    command, out = mixed
    held = json.loads((out / "plan.json").read_text())
    for name in ("left", "right"):
        held["layers"][name]["choice"] = "w1a2"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(held))
    summary = tvmquant(*command, "--plan", plan, "--force", "--json").json()
    assert summary["bits"] == {"w8a8": 3, "w1a2": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latency", "fast"], "latency budget 'fast' is not understood"),
        (["--size", "0.2x"], "size cannot be"),
        (["--bops", "0.9x", "--choices", "w8a8"], "bops cannot be"),
        (["--choices", "w9a8"], "w9a8"),
        (["--choices", "w1a2g32"], "weights of 1 bit have no groups"),
        (["--pin", "lefd=w8a8"], "'lefd'"),
        (["--pin", "depthwise=w4a8g32"], "no kernel"),
        (["--pin", "left=w4a4", "--pin", "right=w8a8"], "same activation"),
        (["--sensitivity", "guess"], "expected one of hessian"),
        (["--plan", "nowhere.json"], "'nowhere.json' cannot be read: No such file"),
        (["--plan", "nowhere.json", "--size", "0.8x"], "leave out either the plan or budgets"),
        (["--tune", "soon"], "expected a time such as 90s"),
        (["--table", "nowhere"], "nowhere"),
    ],
)
def test_wrong_wishes(
    tvmquant, branches_onnx, branches_data, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    command = ["compile", branches_onnx, "--data", branches_data, "-o", "out", *options]
    outcome = tvmquant(*command, "--quiet", code=2)
    assert outcome.stderr.startswith("error: ")
    assert message in outcome.stderr
    assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []
