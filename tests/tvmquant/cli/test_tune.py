import sys

import pytest

from tvmquant.cli.options import parse_time
from tvmquant.cli.tune import describe
from tvmquant.errors import TuningError
from tvmquant.tuning import Tuner
from tvmquant.tuning.tuner import TuningProgress

pytestmark = pytest.mark.usefixtures("brief_tuning")


def test_tune_writes_a_table_and_summarizes_it(tvmquant, small_onnx, tmp_path):
    out = tmp_path / "table"
    command = ["tune", small_onnx, "-o", out, "--threads", 1, "--trials", 2]
    outcome = tvmquant(*command, "--choices", "w8a8")
    assert "small: 2 kernels tuned" in outcome.stdout
    assert "w8a8" in outcome.stdout
    assert "quantize" in outcome.stderr
    (table,) = out.glob("latency-*.json")

    again = tvmquant(*command, "--choices", "w8a8,w4a8", "--json", "--quiet")
    summary = again.json()
    assert again.stderr == ""
    assert summary["latency_table"] == str(table)
    assert set(summary["choices"]) == {"w8a8", "w4a8"}
    assert summary["choices"]["w8a8"]["layers"] == 2
    assert not summary["interrupted"]
    assert summary["failed"] == 0


def test_an_interrupted_run_reports_what_it_has(tvmquant, small_onnx, tmp_path, monkeypatch):
    measured = []
    record = Tuner._record

    def interrupted(self, *arguments):
        record(self, *arguments)
        measured.append(arguments)
        if len(measured) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tuner, "_record", interrupted)
    command = ["tune", small_onnx, "-o", tmp_path, "--threads", 1, "--choices", "w8a8"]
    outcome = tvmquant(*command, "--json", "--quiet", code=130)
    summary = outcome.json()
    assert summary["interrupted"]
    assert summary["trials"] == 3
    assert summary["choices"]["w8a8"]["layers"] == 2


@pytest.mark.parametrize(("option", "bounded"), [("--portable", True), ("--free-weights", False)])
def test_weights_are_rounded_as_asked(tvmquant, small_onnx, tmp_path, monkeypatch, option, bounded):
    def stop(*_arguments, quantize_options, **_options):
        raise TuningError(str(quantize_options))

    # the package's name for the module is the function
    monkeypatch.setattr(sys.modules["tvmquant.tuning.tune"], "tune", stop)
    outcome = tvmquant("tune", small_onnx, "-o", tmp_path / "t", option, code=2)
    assert str({"bound_pairs": bounded}) in outcome.stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--time", "soon", "--time 'soon'"),
        ("--choices", "w0a8", "expected weights and activations of 1 to 8 bits"),
        ("--rpc", "127.0.0.1:9190", "pass rpc_key (--rpc-key)"),
        ("--rpc-key", "board", "without a tracker"),
        ("--target", "no-such-cpu", "LLVM knows no processor"),
    ],
)
def test_bad_options_are_explained(tvmquant, small_onnx, tmp_path, option, value, message):
    outcome = tvmquant("tune", small_onnx, "-o", tmp_path / "t", option, value, code=2)
    assert message in outcome.stderr
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("7", 7), ("0.5m", 30)]
)
def test_times_have_units(text, seconds):
    assert parse_time("--time", text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3s", "0s", "3d", "1m30s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(TuningError, match="expected a time such as 90s or 10m"):
        parse_time("--time", text)


def test_progress_is_one_line():
    state = TuningProgress(7, None, 10.0, None, 12.0, 8.0, "default")
    assert describe(state) == "default: 7 trials, 12.00 -> 8.00 ms"
