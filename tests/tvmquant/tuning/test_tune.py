"""Tuning a network into a folder, for real: killed, continued, and deployed."""

import multiprocessing
import shutil
import time

import numpy as np
import pytest

from tests.brief_tuning import brief_measuring, brief_tuning
from tvmquant.bit_choice import W4A8, W8A8
from tvmquant.deploy.build import build
from tvmquant.deploy.loader import load
from tvmquant.errors import (
    DataError,
    DeviceError,
    QuantizationError,
    TargetError,
    TuningError,
)
from tvmquant.frontend import load_onnx
from tvmquant.machine import Machine
from tvmquant.quantization import calibrate, quantize
from tvmquant.simulator import simulate
from tvmquant.target import parse_target
from tvmquant.tuning import Database, LatencyTable, tune
from tvmquant.tuning.tuner import Tuner


@pytest.fixture(scope="module")
def graph(small_onnx):
    return load_onnx(small_onnx)


@pytest.fixture(scope="module")
def folder(graph, tmp_path_factory):
    """Tuned twice: a folder is added to."""
    folder = tmp_path_factory.mktemp("table")
    stages = []
    with brief_tuning():
        tuned = tune(graph, folder, threads=1, choices=[W8A8], trials=4, stage=stages.append)
        tune(graph, folder, threads=1, choices=[W4A8], trials=4)
    assert (tuned.layers, tuned.workloads) == (2, 2)
    assert stages == ["quantize", "tune"]
    return folder


def test_the_folder_holds_database_and_table(folder):
    (path,) = folder.glob("latency-*.json")
    table = LatencyTable.from_json(path)
    assert path.with_suffix(".csv").is_file()
    # those of the first run are still there
    assert [(e.layer, e.choice) for e in table.entries] == [
        (layer, choice) for choice in ("w4a8", "w8a8") for layer in ("conv", "fc")
    ]
    assert all(e.median_ms <= e.default_ms for e in table.entries)
    database = Database(folder, Machine.of("native", 1), create=False)
    assert {r.cpu for r in database.records()} == {database.header.cpu}


def test_a_library_of_tuned_kernels_computes_what_the_simulator_does(graph, folder, tmp_path):
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype("float32")
    quantized = quantize(graph, calibrate(graph, images))
    database = Database(folder, Machine.of("native", 1), create=False)
    # the slowest instead of the fastest: surely not the default
    worst = {key: database.timings(key)[-1] for key in {r.key for r in database.records()}}
    database.timings = lambda key: [worst[key]]
    asked = []
    lookup = database.tilings()

    def tilings(family, spec, layer):
        asked.append(lookup(family, spec, layer))
        return asked[-1]

    build(quantized, out=tmp_path / "tuned", threads=1, tilings=tilings)
    assert None not in asked
    (expected,) = simulate(quantized, images[:1])
    np.testing.assert_array_equal(load(tmp_path / "tuned")(images[:1]), expected)


@pytest.mark.usefixtures("brief_tuning")
def test_a_quantized_graph_is_tuned_as_it_is(graph, folder):
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype("float32")
    quantized = quantize(graph, calibrate(graph, images))
    tuned = tune(quantized, folder, threads=1, trials=1)
    assert tuned.tuning.trials <= tuned.workloads
    assert {e.choice for e in tuned.table.entries} == {"w8a8", "w4a8"}
    with pytest.raises(QuantizationError, match="leave out choices"):
        tune(quantized, folder, threads=1, choices=[W8A8])
    with pytest.raises(QuantizationError, match="quantize_options"):
        tune(quantized, folder, threads=1, quantize_options={"bound_pairs": False})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda text: text[: len(text) // 2], DataError, "remove it and tune again"),
        (lambda text: text.replace('"tvm":', '"other":'), TuningError, "different versions"),
    ],
)
def test_a_table_that_cannot_be_added_to_is_told_before_any_measurement(
    graph, folder, tmp_path, monkeypatch, damage, error, message
):
    for path in folder.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
        if path.match("latency-*.json"):
            (tmp_path / path.name).write_text(damage(path.read_text()))
    monkeypatch.setattr(Tuner, "run", None)
    with pytest.raises(error, match=message):
        tune(graph, tmp_path, threads=1, choices=[W8A8], trials=1)


def run_for_ever(graph, folder):
    """Tune with processes of its own."""
    with brief_measuring():
        tune(graph, folder, threads=1, choices=[W8A8], trials=10_000)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_killed_at_any_moment_continues(graph, tmp_path):
    target = parse_target("native")
    known = 0
    for more in (1, 4):
        run = multiprocessing.get_context("fork").Process(
            target=run_for_ever, args=(graph, tmp_path)
        )
        run.start()
        try:
            while len(Database(tmp_path, Machine.of(target, 1))) < known + more:
                assert run.is_alive()
                time.sleep(0.1)
        finally:
            run.kill()
            run.join()
        database = Database(tmp_path, Machine.of(target, 1))
        assert not database.skipped
        assert len(database) >= known + more
        known = len(database)
    with brief_tuning():
        assert tune(graph, tmp_path, threads=1, choices=[W8A8], trials=1).tuning.best_ms > 0
    assert len(Database(tmp_path, Machine.of(target, 1))) > known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads = 0"),
        ({"batch": 0}, "batch = 0"),
        ({"rpc": "127.0.0.1:9190"}, "needs the key"),
        ({"rpc": "127.0.0.1", "rpc_key": "k"}, "expected HOST:PORT"),
        ({"rpc": "127.0.0.1:x", "rpc_key": "k"}, "expected HOST:PORT"),
        ({"rpc_key": "k"}, "without a tracker"),
        ({"rpc": "127.0.0.1:9190", "rpc_key": "k"}, "threads of a device are not known"),
        ({"rpc": "127.0.0.1:1", "rpc_key": "k", "threads": 1}, "no RPC tracker answers"),
    ],
)
def test_bad_options_are_named_and_leave_nothing(graph, tmp_path, options, message):
    with pytest.raises((DeviceError, TargetError, TuningError), match=message):
        tune(graph, tmp_path / "table", **options)
    assert not (tmp_path / "table").exists()
