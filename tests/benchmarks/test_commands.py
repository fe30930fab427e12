import json
import os
import sys
import tarfile
from io import BytesIO

import numpy as np
import pytest
import tvm
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import allocation, compile_time, kernels, latency, memory, rows
from tvmquant import network_latency
from tvmquant.cli.output import StageReporter
from tvmquant.errors import TargetError
from tvmquant.schedules import isa
from tvmquant.target import parse_target

KEYS = {"benchmark", "model", "config", "metric", "value", "unit", "threads"}
FACTS = {"cpu", "isa", "physical_cores", "target"}

needs_dot_product = pytest.mark.skipif(
    isa.multiplier(isa.dot_products(parse_target("native"))[0]) is None,
    reason="needs an x86 processor with AVX2",
)


def call(monkeypatch, *arguments):
    """Run ``python -m benchmarks`` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


def read(path):
    """Return the rows of a file, each of the schema of all benchmarks."""
    found = json.loads(path.read_text())
    for row in found:
        assert row.keys() >= KEYS | FACTS
        assert not any(isinstance(value, (dict, list)) for value in row.values())
    return found


def values(found, *keys):
    return {tuple(row[key] for key in keys): row["value"] for row in found}


@pytest.fixture
def shared(shallow_network, tmp_path):
    """Return a folder as --data wants it, with a network and random images in ten classes."""
    folder = tmp_path / "shared"
    for part in ("models", "data"):
        (folder / part).mkdir(parents=True)
    (folder / "models" / "resnet20-cifar10.onnx").write_bytes(shallow_network.read_bytes())
    rng = np.random.default_rng(0)
    for name, count in (("cifar10-train.tar", 200), ("cifar10-test.tar", 60)):
        with tarfile.open(folder / "data" / name, "w") as archive:
            for index in range(count):
                picture = BytesIO()
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(picture, "PNG")
                entry = tarfile.TarInfo(f"class{index % 10}/{index}.png")
                entry.size = picture.tell()
                picture.seek(0)
                archive.addfile(entry, picture)
    return folder


def test_accuracy_rows_come_from_the_deployed_library(shared, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    options = ("--models", "resnet20", "--data", shared, "--limit", 30, "--threads", 1)
    options = (*options, "--method", "minmax", "--choices", "w8a8,w5a6")
    assert call(monkeypatch, "accuracy", *options, "--json", out) == 0
    found = read(out)
    measured = values(found, "config", "metric")
    assert list(measured) == [
        ("float", "top1"),
        ("tvmquant-w8a8", "top1"),
        ("tvmquant-w8a8", "agreement"),
        ("tvmquant-w8a8", "sqnr_db"),
        ("tvmquant-w8a8", "library_bytes"),
        ("tvmquant-w5a6", "top1"),
        ("tvmquant-w5a6", "agreement"),
        ("tvmquant-w5a6", "sqnr_db"),
        ("tvmquant-w5a6", "library_bytes"),
    ]
    assert measured["tvmquant-w5a6", "sqnr_db"] < measured["tvmquant-w8a8", "sqnr_db"]
    assert {row["images"] for row in found} == {30}
    assert measured["tvmquant-w8a8", "agreement"] >= 80
    # three images are too few to calibrate well
    assert 8 < measured["tvmquant-w8a8", "sqnr_db"] < 60
    assert "tvmquant-w8a8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("accuracy",), "squeezenet1.1-imagenet.onnx is not there; pass --data DIR"),
        (("accuracy", "--models", "resnet20"), "resnet20-cifar10.onnx is not there"),
        (("accuracy", "--models", "alexnet"), "'alexnet' is unknown; expected some of squeezenet"),
        (("latency", "--models", "resnet18,squeezenet"), "squeezenet1.1-imagenet.onnx is not ther"),
        (("latency", "--models", "alexnet"), "'alexnet' is unknown"),
        (("latency", "--peers", "tflite"), "'tflite' is unknown; expected some of onnxruntime"),
        (("latency", "--threads", "1,two"), "'1,two': expected numbers of threads"),
        (("memory", "--models", "alexnet"), "'alexnet' is unknown"),
        (("memory", "--peers", "tflite"), "'tflite' is unknown"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(
    arguments, named, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "rows.json"
    data = ("--data", tmp_path / "nothing")
    assert call(monkeypatch, *arguments, *data, "--json", out) == 2
    assert named in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_missing_images_are_named(shared, tmp_path, monkeypatch, capsys):
    (shared / "data" / "cifar10-test.tar").unlink()
    options = ("--models", "resnet20", "--data", shared, "--json", tmp_path / "rows.json")
    assert call(monkeypatch, "accuracy", *options) == 2
    assert "cifar10-test.tar is not there" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "rows.json").exists()


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, capsys):
    out = tmp_path / "no" / "rows.json"
    assert call(monkeypatch, "kernels", "--json", out) == 2
    assert "expected a file in an existing folder" in " ".join(capsys.readouterr().err.split())


def test_a_new_process_returns_or_raises():
    assert latency.in_new_process(os.path.basename, "a/b") == "b"
    with pytest.raises(ValueError, match="invalid literal"):
        latency.in_new_process(int, "b")


def test_an_engine_that_ends_its_process_is_left_out(monkeypatch, capsys):
    in_new_process = latency.in_new_process
    monkeypatch.setattr(latency, "in_new_process", lambda *_: in_new_process(os._exit, 3))
    case = latency.Case("net", "net.onnx", np.zeros(1), 1, 1, 1, ("openvino",), False, "native")
    assert latency._alive(case) == ()
    assert "net: openvino ends its process" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("shallow_unet")
def test_latency_rows_hold_medians_and_ratios(tmp_path, monkeypatch):
    # importing everything anew in the other process would take most of the time
    monkeypatch.setattr(latency, "in_new_process", lambda function, case: function(case))
    out = tmp_path / "rows.json"
    options = ("--image-size", 16, "--peers", "onnxruntime", "--threads", 1, "--repeats", 4)
    assert call(monkeypatch, "latency", "--models", "unet", *options, "--json", out) == 0
    found = read(out)
    medians = values([row for row in found if row["metric"] == "latency_ms"], "config")
    (limit,) = (row["value"] for row in found if row["metric"] == "limit_ms")
    assert 0 < limit < medians["tvmquant-int8",]
    assert list(medians) == [("tvmquant-int8",), ("onnxruntime-float",), ("onnxruntime-int8",)]
    assert {row["tvm_threads"] for row in found} == {1}
    assert all(row["runs"] == 4 for row in found if row["metric"] == "latency_ms")
    ratio = medians["tvmquant-int8",] / medians["onnxruntime-int8",]
    ratios = values([row for row in found if "peer" in row], "metric", "peer")
    assert ratios == {
        ("ratio_to_peer", "onnxruntime-int8"): pytest.approx(ratio),
        ("ratio_to_best_peer", "onnxruntime-int8"): pytest.approx(ratio),
    }


@needs_dot_product
@pytest.mark.skipif(not memory.STATUS.is_file(), reason="memory is measured on Linux")
def test_exactness_rows_count_the_numbers_that_differ(shared, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    options = ("--data", shared, "--threads", 1, "--json", out)
    assert (
        call(monkeypatch, "exactness", "--models", "resnet20", "--choices", "w4a4", *options) == 0
    )
    found = values(read(out), "config", "metric")
    assert found["twin-w4a4", "differing"] == found["library-w4a4", "differing"] == 0
    assert found["fake-quant-w4a4", "sqnr_db"] is None or found["fake-quant-w4a4", "sqnr_db"] > 20


@pytest.mark.usefixtures("shallow_unet")
def test_memory_rows_are_of_processes_of_their_own(tmp_path, monkeypatch):
    def in_new_process(function, argument):
        # building imports everything anew there, and is not what is measured
        return apart(function, argument) if function is memory.measure else function(argument)

    apart = latency.in_new_process
    monkeypatch.setattr(latency, "in_new_process", in_new_process)
    out = tmp_path / "rows.json"
    options = ("--models", "unet", "--image-size", 16, "--peers", "", "--threads", 1)
    assert call(monkeypatch, "memory", *options, "--json", out) == 0
    found = values(read(out), "config", "metric")
    assert list(found) == [("tvmquant-int8", "load_mb"), ("tvmquant-int8", "run_mb")]
    # TVM's runtime and its Python packages, but neither its compiler nor PyTorch
    assert 10 < found["tvmquant-int8", "run_mb"] <= found["tvmquant-int8", "load_mb"] < 150


def test_peers_keep_to_the_instructions_of_the_target():
    assert latency.restrict_openvino("haswell") == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert latency.restrict_openvino("alderlake") == {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}
    assert latency.restrict_openvino("icelake-server") == {}


@pytest.mark.usefixtures("shallow_unet")
def test_profile_rows_add_up(tmp_path, monkeypatch, capsys):
    measured = []

    def once(function, case):
        if not measured:
            measured.append(function(case))
        return measured[0]

    monkeypatch.setattr(latency, "in_new_process", once)
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    out, later = tmp_path / "rows.json", tmp_path / "later.json"
    options = ("--models", "unet", "--image-size", 16, "--threads", 1, "--repeats", 2)
    assert call(monkeypatch, "profile", *options, "--json", out) == 0
    found = {row["layer"]: row for row in read(out)}
    calls = [row for layer, row in found.items() if layer not in ("total", "network")]
    assert max(row["macs"] for row in calls) > 0
    assert all(row["bytes"] > 0 and row["kernel"] for row in calls)
    assert sum(row["share"] for row in calls) == pytest.approx(1.0)
    for key in ("value", "limit_us"):
        assert sum(row[key] for row in calls) == pytest.approx(found["total"][key])
    for row in calls:
        assert row["fraction_of_limit"] == pytest.approx(row["limit_us"] / row["value"])
        assert row["bound"] == "memory" or row["macs"] > 0
        assert row["before_us"] is None
    assert call(monkeypatch, "profile", *options, "--before", out, "--json", later) == 0
    assert {row["layer"]: row["before_us"] for row in read(later)} == {
        layer: row["value"] for layer, row in found.items()
    }
    out.write_text("{}")
    assert call(monkeypatch, "profile", *options, "--before", out) == 2
    assert "not the rows of a profile" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("shallow_unet")
def test_allocation_rows_are_of_the_same_libraries(monkeypatch, tmp_path):
    monkeypatch.setattr(allocation, "SECONDS", 0.0)
    monkeypatch.setattr(allocation, "LEVELS", (0.5,))
    for name in ("ROUND_SECONDS", "SECONDS"):
        monkeypatch.setattr(network_latency, name, 0.0)
    found = allocation.run(
        ["unet"], data=tmp_path, stage=StageReporter(quiet=True), target="native", threads=1,
        repeats=1, limit=None, image_size=16,
    )  # fmt: skip
    whole = values([row for row in found if "layer" not in row], "config", "metric")
    configs = list(dict.fromkeys(config for config, _ in whole))
    budgets = [f"ilp-{quantity}-0.5" for quantity in ("latency", "size", "bops")]
    assert configs == ["w8a8", "w4a8", "w4a4", *budgets]
    for quantity in ("size_bytes", "bops"):
        low, high = whole["w4a4", quantity], whole["w8a8", quantity]
        plan = f"ilp-{quantity.removesuffix('_bytes')}-0.5"
        assert low <= whole[plan, quantity] <= (low + high) / 2 * (1 + 1e-9)
    for config in configs:
        predicted, measured = whole[config, "predicted_ms"], whole[config, "latency_ms"]
        error = whole[config, "prediction_error"]
        assert error == pytest.approx(100 * (predicted / measured - 1))
        speedup = whole["w8a8", "latency_ms"] / measured
        assert whole[config, "speedup"] == pytest.approx(speedup)


def test_the_layers_are_those_of_resnet50():
    layers = kernels.resnet50_layers()
    assert len({layer.name for layer in layers}) == len(layers)
    assert sum(layer.count for layer in layers) == 54
    assert sum(layer.count * layer.spec.macs for layer in layers) == 4_089_184_256
    assert (layers[-1].name, layers[-1].spec.macs) == ("dense 2048->1000", 2_048_000)
    assert sum(layer.count for layer in layers if layer.spec.epilogue.residual) == 16


@needs_dot_product
def test_kernel_rows_relate_layers_to_the_peak(monkeypatch):
    layers = [
        kernels.Layer("a", kernels.resnet50_layers()[-4].spec, 2),
        kernels.Layer("b", kernels.resnet50_layers()[-2].spec, 1),
        kernels.Layer("dense", kernels.resnet50_layers()[-1].spec, 1),
    ]
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    found = kernels.run(threads=1, repeats=3, layers=layers)
    fractions = values([r for r in found if r["metric"] == "fraction_of_peak"], "layer")
    rates = values([r for r in found if r["metric"] == "gmacs_per_s"], "layer")
    assert set(fractions) == {("a",), ("b",), ("dense",), ("total",), ("geomean",)}
    assert set(rates) == {("a",), ("b",), ("dense",), ("total",), ("peak",)}
    assert all(value > 0 for value in (*fractions.values(), *rates.values()))
    assert fractions["geomean",] == pytest.approx((fractions["a",] * fractions["b",]) ** 0.5)
    low, *_, high = sorted((rates["a",], rates["b",], rates["dense",]))
    assert low <= rates["total",] <= high


@needs_dot_product
def test_a_pool_of_fewer_threads_than_the_rows_would_say_is_refused(monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    tvm.get_global_func("runtime.config_threadpool")(0, 1)
    with pytest.raises(TargetError, match="1000 were asked for; start a new one with TVM_NUM_THR"):
        kernels.run(threads=1000, repeats=1, layers=kernels.resnet50_layers()[-1:])


@pytest.mark.parametrize(
    ("processor", "mnemonics"),
    [
        ("haswell", ("vpmaddubsw", "vpmaddwd")),
        ("skylake-avx512", ("vpmaddubsw", "vpmaddwd")),
        ("icelake-server", ("vpdpbusd",)),
        ("alderlake", ("vpdpbusd",)),
    ],
)
def test_the_loop_of_the_peak_keeps_all_its_multiplications(processor, mnemonics):
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    dot = isa.dot_products(target)[0]
    kernel = kernels.peak_kernel(dot, 1).with_attr("global_symbol", "main")
    built = tvm.compile(tvm.IRModule({"main": kernel}), target=target)
    lines = [line.split() for line in built.mod.inspect_source("asm").splitlines()]
    steps = kernels.ACCUMULATORS[dot.registers]
    for mnemonic in mnemonics:
        found = [line for line in lines if mnemonic in line]
        # unrolled once or more, and on registers alone
        assert found
        assert len(found) % steps == 0
        assert not any("(" in "".join(line) for line in found)


def test_no_peak_without_a_dot_product():
    generic = isa.dot_products(tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"}))[0]
    with pytest.raises(TargetError, match="no dot-product instruction"):
        kernels.peak_kernel(generic, 1)


@pytest.mark.usefixtures("shallow_unet")
def test_compile_time_rows_are_seconds():
    found = compile_time.run(
        stage=StageReporter(quiet=True), threads=1, model="unet", repeats=1, image_size=16
    )
    seconds = values(found, "model", "metric")
    assert list(seconds) == [
        ("", "import_s"),
        ("", "import_all_s"),
        ("", "help_s"),
        ("unet", "build_s"),
    ]
    assert all(0 < value < 600 for value in seconds.values())
    assert seconds["", "import_s"] < seconds["", "import_all_s"]


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    make = rows.RowMaker("b", 1, {"isa": "x"})
    path = tmp_path / "rows.json"
    good = [make("m", "c", "v", 1.5, "ms", layer="l"), make("m", "c", "v", float("inf"), "dB")]
    rows.write_rows(path, good)
    assert json.loads(path.read_text()) == good
    assert good[1]["value"] is None
    with pytest.raises(TypeError):
        rows.write_rows(path, [make("m", "c", "v", 2.0, "ms"), make("m", "c", "v", 1.0, {1})])
    assert json.loads(path.read_text()) == good
    assert list(tmp_path.iterdir()) == [path]
