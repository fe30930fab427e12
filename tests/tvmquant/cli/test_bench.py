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
