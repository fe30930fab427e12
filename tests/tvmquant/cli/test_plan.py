import shutil

import pytest

from tvmquant.allocation import Plan
from tvmquant.errors import DataError
from tvmquant.machine import Machine
from tvmquant.tuning import Database


@pytest.fixture(scope="module")
def measured(branches_onnx, branches_data, tmp_path_factory, brief_timing):
    """A folder with a plan and the measurements beside it, and the command that made it."""
    from typer.testing import CliRunner

    from tvmquant.cli.app import app

    folder = tmp_path_factory.mktemp("plan")
    command = [
        "plan", branches_onnx, "--data", branches_data, "--threads", 1, "--choices", "w4a8",
        "--sensitivity", "output", "-o", folder / "plan.json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.stderr
    return command, folder


@pytest.fixture
def nothing_is_measured(monkeypatch):
    monkeypatch.setattr("tvmquant.quantization.calibrate", None)
    monkeypatch.setattr("tvmquant.sensitivity.estimate.make_quantizers", None)
    monkeypatch.setattr("tvmquant.mixed_precision.choose.measure_network", None)


pytestmark = pytest.mark.usefixtures("brief_timing")


def test_without_a_budget_nothing_is_given_up(tvmquant, measured, nothing_is_measured):
    command, folder = measured
    outcome = tvmquant(*command)
    plan = Plan.load(folder / "plan.json")
    assert {str(choice) for choice in plan.choices.values()} == {"w8a8"}
    assert plan.budgets == {}
    for layer in plan.layers.values():
        assert layer.reason in " ".join(outcome.stdout.split())
    assert "1.00x of int8" in outcome.stdout
    assert "least perturbation by latency" not in outcome.stdout


def test_another_budget_is_a_matter_of_the_program(tvmquant, measured, nothing_is_measured):
    command, folder = measured
    document = tvmquant(*command, "--size", "0.85x", "--json", "--quiet").json()
    plan = Plan.load(folder / "plan.json")
    assert document["out"] == str(folder / "plan.json")
    assert Plan(**document["plan"]) == plan
    assert document["frontier"] == document["untuned"] == []
    assert sorted(str(c) for c in plan.choices.values()) == ["w4a8", "w8a8", "w8a8", "w8a8", "w8a8"]
    assert sorted(path.name.partition("-")[0] for path in folder.rglob("*.json")) == [
        "calibration", "latency", "plan.json", "sensitivity",
    ]  # fmt: skip


def test_the_frontier_is_listed(tvmquant, measured, nothing_is_measured):
    command, folder = measured
    text = tvmquant(*command, "--pareto").stdout
    assert "least perturbation by latency" in text
    points = tvmquant(*command, "--pareto", "--json").json()["frontier"]
    assert len(points) >= 1
    layers = set(Plan.load(folder / "plan.json").layers)
    for point in points:
        assert set(point["choices"]) == layers
        assert {"latency", "size", "bops", "perturbation"} < set(point)
    times = [point["latency"] for point in points]
    assert times == sorted(times)


def test_layers_that_a_table_lacks_are_listed(
    tvmquant, branches_onnx, branches_data, tmp_path, monkeypatch
):
    Database(tmp_path / "table", Machine.of("native", 1))
    command = [
        "plan", branches_onnx, "--data", branches_data, "--threads", 1, "--choices", "w4a8",
        "--sensitivity", "random", "--table", tmp_path / "table", "-o", tmp_path / "plan.json",
    ]  # fmt: skip
    text = "has no measurements of 5 layers (stem, left, right, depthwise, head)"
    assert text in tvmquant(*command).stderr
    # also where nothing is measured again
    monkeypatch.setattr("tvmquant.mixed_precision.choose.measure_network", None)
    assert text in tvmquant(*command).stderr
    outcome = tvmquant(*command, "--json", "--quiet")
    assert outcome.json()["untuned"] == ["stem", "left", "right", "depthwise", "head"]
    assert outcome.stderr == ""
    assert tvmquant(*command, "--quiet").stderr == ""


@pytest.mark.parametrize(("option", "bounded"), [("--portable", True), ("--free-weights", False)])
def test_a_plan_is_for_weights_as_they_will_be_rounded(
    tvmquant, branches_onnx, branches_data, tmp_path, monkeypatch, option, bounded
):
    def stop(setup, *_arguments):
        raise DataError(str(setup.quantize_options))

    monkeypatch.setattr("tvmquant.mixed_precision.choose.choose_plan", stop)
    command = ["plan", branches_onnx, "--data", branches_data, "-o", tmp_path / "plan.json"]
    outcome = tvmquant(*command, "--threads", 1, option, code=2)
    assert str({"bound_pairs": bounded}) in outcome.stderr


def test_a_plan_can_be_compiled(tvmquant, branches_onnx, branches_data, measured, tmp_path):
    command, folder = measured
    tvmquant(*command, "--size", "0.85x")
    assert {path.name for path in folder.iterdir()} == {"plan.json", "plan-measurements"}
    plan = shutil.copy(folder / "plan.json", tmp_path / "mine.json")
    out = tmp_path / "out"
    options = ["--data", branches_data, "--plan", plan, "-o", out, "--threads", 1, "--json"]
    assert tvmquant("compile", branches_onnx, *options).json()["bits"] == {"w8a8": 4, "w4a8": 1}


def test_an_interruption_keeps_what_was_measured(
    tvmquant, branches_onnx, branches_data, tmp_path, monkeypatch
):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tvmquant.mixed_precision.choose.measure_network", interrupt)
    command = ["plan", branches_onnx, "--data", branches_data, "-o", tmp_path / "plan.json"]
    outcome = tvmquant(*command, "--sensitivity", "random", "-q", code=130)
    assert outcome.stderr == "error: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["plan-measurements"]
    names = sorted(path.name.partition("-")[0] for path in tmp_path.glob("*/*"))
    assert names == ["calibration", "sensitivity"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0.2x"], "size cannot be"),
        (["--pin", "lefd=w8a8"], "'lefd'"),
        (["--table", "nowhere"], "nowhere"),
        (["--sensitivity", "guess"], "expected one of hessian"),
        (["-o", "."], "is a folder; name a file for the plan, such as plan.json"),
        (["--target", "-mcpu=nonsense"], "nonsense"),
    ],
)
def test_wrong_options(
    tvmquant, branches_onnx, branches_data, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    outcome = tvmquant("plan", branches_onnx, "--data", branches_data, *options, "-q", code=2)
    assert outcome.stderr.startswith("error: ")
    assert message in outcome.stderr
    assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_plan_without_data_says_what_to_pass(tvmquant, branches_onnx):
    assert "pass --data a folder or .tar" in tvmquant("plan", branches_onnx, code=2).stderr
