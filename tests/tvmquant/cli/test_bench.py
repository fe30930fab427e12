import pytest

from tests.rpc_devices import LOOPBACK, running_devices


def test_bench_prints_the_latency(tvmquant, small_library):
    text = tvmquant("bench", small_library, "--repeats", 3, "--threads", 1).stdout
    assert "1 threads, 3 runs" in text
    assert "1.00x" in text


def test_json_holds_profile_and_ratio(tvmquant, small_library):
    outcome = tvmquant(
        "bench", small_library, "--repeats", 3, "--profile", "--against-float", "--json"
    )
    report = outcome.json()
    library, rival = report["latency"]["library"], report["latency"]["float"]
    assert library["repeats"] == 3
    assert 0 < library["min_ms"] <= library["median_ms"] <= library["p90_ms"]
    assert report["speedup"] == rival["median_ms"] / library["median_ms"]
    assert {"conv", "fc"} <= {layer["id"] for layer in report["layers"]}
    assert all(layer["ms"] > 0 for layer in report["layers"])


def test_profile_is_a_table_of_layers(tvmquant, small_library):
    text = tvmquant("bench", small_library, "--repeats", 2, "--profile").stdout
    assert "GMAC/s" in text
    assert "conv2d" in text


def test_what_is_no_library(tvmquant, tmp_path):
    assert "manifest.json" in tvmquant("bench", tmp_path, code=2).stderr
    assert "no such folder" in tvmquant("bench", tmp_path / "nothing", code=2).stderr


def test_a_float_model_that_is_not_there(tvmquant, small_library, tmp_path):
    command = ["bench", small_library, "--against-float", "--model", tmp_path / "gone.onnx"]
    assert "gone.onnx is not there" in tvmquant(*command, code=2).stderr


def test_a_device_of_a_tracker_is_timed_by_its_own_clock(tvmquant, small_library, tracker_port):
    device = ["--rpc", f"{LOOPBACK}:{tracker_port}", "--rpc-key", "bench"]
    command = ["bench", small_library, "--repeats", 2, "--threads", 1, "--profile", "--json"]
    with running_devices(tracker_port, "bench", 1):
        report = tvmquant(*command, *device).json()
    assert report["device"] == "rpc:bench"
    assert report["latency"]["library"]["min_ms"] > 0
    assert all(layer["ms"] > 0 for layer in report["layers"])


@pytest.mark.parametrize("command", ["bench", "tune", "plan", "compile"])
def test_every_command_that_measures_names_a_device_alike(tvmquant, command, small_onnx, tmp_path):
    device = ["--rpc", "9190", "--rpc-key", "board"]
    options = {
        "bench": [tmp_path],
        "tune": [small_onnx, "-o", tmp_path / "table"],
        "plan": [small_onnx, "--data", tmp_path, "-o", tmp_path / "plan.json"],
        "compile": [small_onnx, "--data", tmp_path, "-o", tmp_path / "library"],
    }[command]
    assert "expected HOST:PORT" in tvmquant(command, *options, *device, code=2).stderr
