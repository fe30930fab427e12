"""Every bad input ends in one clear error, exit code 2 and nothing left half-written."""

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from typer.testing import CliRunner

from tvmquant.calibration import Calibration
from tvmquant.cli.app import app
from tvmquant.deploy.build import build
from tvmquant.deploy.compiler import compile_in_worker
from tvmquant.deploy.loader import load
from tvmquant.errors import (
    ArtifactError,
    DataError,
    ModelError,
    QuantizationError,
    TargetError,
    TVMQuantError,
    UnsupportedModelError,
)
from tvmquant.frontend import load_onnx
from tvmquant.quantization import calibrate, quantize

NOISE = ("Traceback", "Stack trace", "/src/", ".cc:", "TVM_BACKTRACE")


def check_message(text, *parts):
    """Require every part (letter case aside), and nothing of TVM's or Python's insides."""
    for part in parts:
        assert part.lower() in text.lower()
    for word in NOISE:
        assert word not in text


def run_cli(*arguments):
    """Run a command that fails as an error of the user does; return its one message."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    return " ".join(result.stderr.split())


def write_model(path, nodes, weights, *, shape=("N", 3, 8, 8), outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def conv(weight="w", source="x", result="y", name="conv", **attributes):
    return helper.make_node("Conv", [source, weight], [result], name, **attributes)


@pytest.fixture(scope="module")
def network(small_onnx, small_data):
    """The small network, its images, and what it is calibrated and quantized to."""
    graph = load_onnx(small_onnx)
    images = np.load(small_data)["images"]
    calibration = calibrate(graph, images)
    return graph, images, calibration, quantize(graph, calibration)


# -- models --------------------------------------------------------------------------------------


def text_file(path, _model):
    path.write_text("no model\n" * 40)


def empty_file(path, _model):
    path.write_bytes(b"")


def folder(path, _model):
    path.mkdir()


def no_file(_path, _model):
    pass


def truncated(path, model):
    content = model.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def with_external_data(path, location, size=3 * 3 * 3 * 8):
    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=(8, 3, 3, 3),
        data_location=TensorProto.EXTERNAL,
    )  # fmt: skip
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="length", value=str(4 * size))
    write_model(path, [conv()], {})
    model = onnx.load(path)
    model.graph.initializer.append(weight)
    path.write_bytes(model.SerializeToString())


def external_data_missing(path, _model):
    with_external_data(path, "weights.bin")


def external_data_outside(path, _model):
    path.parent.parent.joinpath("weights.bin").write_bytes(bytes(4 * 216))
    with_external_data(path, "../weights.bin")


def external_data_too_short(path, _model):
    path.with_name("weights.bin").write_bytes(bytes(100))
    with_external_data(path, "weights.bin")


def unknown_operators(path, _model):
    nodes = [
        helper.make_node("Fancy", ["x"], ["a"], "first", domain="com.example"),
        helper.make_node("STFT", ["a", "a"], ["y"], "second"),
    ]
    write_model(path, nodes, {})


def open_shape(path, _model):
    write_model(path, [conv()], {"w": np.ones((8, 3, 3, 3))}, shape=("N", 3, "height", "width"))


def nan_weight(path, _model):
    weight = np.ones((8, 3, 3, 3))
    weight[2, 1] = np.nan
    write_model(path, [conv()], {"w": weight})


def infinite_weight(path, _model):
    weight = np.ones((8, 3, 3, 3))
    weight[0, 0, 0, 0] = -np.inf
    write_model(path, [conv()], {"w": weight})


BAD_MODELS = {
    text_file: (ModelError, ["model.onnx", "ONNX"]),
    empty_file: (ModelError, ["model.onnx", "empty"]),
    folder: (ModelError, ["model.onnx"]),
    no_file: (ModelError, ["model.onnx"]),
    truncated: (ModelError, ["model.onnx"]),
    external_data_missing: (ModelError, ["weights.bin"]),
    external_data_outside: (ModelError, ["../weights.bin"]),
    external_data_too_short: (ModelError, ["weights.bin"]),
    unknown_operators: (UnsupportedModelError, ["Fancy", "first", "STFT", "second"]),
    open_shape: (ModelError, ["height", "x"]),
    nan_weight: (ModelError, ["w", "NaN"]),
    infinite_weight: (ModelError, ["w", "Inf"]),
}


@pytest.mark.parametrize("damage", BAD_MODELS, ids=lambda damage: damage.__name__)
def test_models(tmp_path, small_onnx, small_data, damage):
    kind, parts = BAD_MODELS[damage]
    home = tmp_path / "home"
    home.mkdir()
    path = home / "model.onnx"
    damage(path, small_onnx)
    before = sorted(home.iterdir())
    with pytest.raises(kind) as error:
        load_onnx(path)
    check_message(str(error.value), *parts)
    message = run_cli("compile", path, "--data", small_data, "-o", home / "out" / "library")
    check_message(message, *parts)
    assert sorted(home.iterdir()) == before


def test_strict_lists_what_would_stay_float(tmp_path, network):
    nodes = [
        conv(result="a", name="conv_in"),
        helper.make_node("Softmax", ["a"], ["b"], "gate", axis=1),
        conv("v", "b", "c", "conv_middle"),
        helper.make_node("Softmax", ["c"], ["d"], "attention", axis=1),
        conv("v", "d", "y", "conv_out"),
    ]
    weights = {"w": np.ones((8, 3, 1, 1)), "v": np.eye(8)[:, :, None, None]}
    path = write_model(tmp_path / "float.onnx", nodes, weights)
    graph, data = load_onnx(path), tmp_path / "data.npy"
    np.save(data, network[1])
    with pytest.raises(QuantizationError) as error:
        quantize(graph, calibrate(graph, network[1]), strict=True)
    parts = ["2 operators", "softmax", "gate", "attention", "no integer form"]
    check_message(str(error.value), *parts)
    message = run_cli("compile", path, "--data", data, "--strict", "-o", tmp_path / "library")
    check_message(message, *parts)
    assert not (tmp_path / "library" / "manifest.json").exists()


# -- data ----------------------------------------------------------------------------------------


def array_with(value):
    images = np.zeros((4, 3, 8, 8), np.float32)
    images[2, 1, 5, 5] = value
    return images


BAD_DATA = {
    "no items": (np.zeros((0, 3, 8, 8), np.float32), ["(0, 3, 8, 8)"]),
    "channels": (np.zeros((4, 1, 8, 8), np.float32), ["1, 8, 8", "3, 8, 8"]),
    "rank": (np.zeros((3, 8, 8), np.float32), ["(3, 8, 8)"]),
    "size": (np.zeros((4, 3, 9, 8), np.float32), ["9, 8", "8, 8"]),
    "NaN": (array_with(np.nan), ["NaN", "2"]),
    "Inf": (array_with(np.inf), ["Inf", "2"]),
    "strings": (np.array(["a", "b"]), ["dtype"]),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_calibration_arrays(tmp_path, small_onnx, network, name):
    array, parts = BAD_DATA[name]
    with pytest.raises(DataError) as error:
        calibrate(network[0], array)
    check_message(str(error.value), *parts)
    np.save(tmp_path / "data.npy", array)
    message = run_cli(
        "compile", small_onnx, "--data", tmp_path / "data.npy", "-o", tmp_path / "library"
    )
    check_message(message, "data.npy", *parts)
    assert os.listdir(tmp_path) == ["data.npy"]


@pytest.mark.parametrize("data", [None, {}, [], iter(()), 3])
def test_calibration_objects(network, data):
    with pytest.raises(DataError):
        calibrate(network[0], data)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_calibration_folders(tmp_path, small_onnx, name):
    (tmp_path / "empty").mkdir()
    message = run_cli("compile", small_onnx, "--data", tmp_path / name, "-o", tmp_path / "library")
    check_message(message, name)
    assert os.listdir(tmp_path) == ["empty"]


def test_calibration_of_another_model(tmp_path, network):
    path = write_model(tmp_path / "other.onnx", [conv()], {"w": np.ones((8, 3, 1, 1))})
    other = load_onnx(path)
    with pytest.raises(DataError) as error:
        quantize(other, network[2])
    check_message(str(error.value), "calibrat")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 99}'])
def test_calibration_files(tmp_path, content):
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(TVMQuantError) as error:
        Calibration.load(path)
    check_message(str(error.value), "calibration.json")


def test_levels_in_the_wrong_order(tmp_path, network):
    graph, images, calibration, quantized = network
    with pytest.raises(QuantizationError, match=r"L0.*L2"):
        quantize(quantized, calibration)
    with pytest.raises(QuantizationError, match=r"L0.*L2"):
        calibrate(quantized, images)
    with pytest.raises(QuantizationError, match="L1"):
        build(graph.with_module(graph.module, "L1"), out=tmp_path / "library")


# -- plans ---------------------------------------------------------------------------------------


def choice_of(name, choice):
    def change(plan):
        plan["layers"][name]["choice"] = choice

    return change


def rename_a_layer(plan):
    plan["layers"] = {n.replace("left", "lefd"): layer for n, layer in plan["layers"].items()}


def leave_out_a_layer(plan):
    del plan["layers"]["right"]


def add_a_field(plan):
    plan["layers"]["right"]["bits"] = 4


def of_another_model(plan):
    plan["fingerprint"] = "0" * 64


def of_a_later_version(plan):
    plan["schema_version"] = 9


BAD_PLANS = {
    "unknown layer": (rename_a_layer, ["'lefd'", "did you mean 'left'"]),
    "no layer": (leave_out_a_layer, ["no choice", "right"]),
    "another model": (of_another_model, ["another model", "branches"]),
    "later version": (of_a_later_version, ["schema_version = 9", "reads 1"]),
    "unknown choice": (choice_of("right", "w0a8"), ["right", "w0a8", "1 to 8 bits"]),
    "no choice": (choice_of("right", "narrow"), ["right", "'narrow'", "a form such as w8a8"]),
    "null": (choice_of("right", None), ["right", "None"]),
    "number": (choice_of("right", 4), ["right", "= 4", "string"]),
    "group": (choice_of("right", "w4a8g48"), ["right", "w4a8g48", "32, 64 or 128"]),
    "extra field": (add_a_field, ["right", "bits = 4"]),
    "no kernel": (
        choice_of("depthwise", "w4a8g32"),
        ["'depthwise'", "w4a8g32", "without"],
    ),
    "tied layers": (choice_of("right", "w8a4"), ["'left'", "'right'", "same activation"]),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_plans(tmp_path, branches_onnx, branches_data, branches_library, monkeypatch, name):
    change, parts = BAD_PLANS[name]
    plan = json.loads((branches_library / "plan.json").read_text())
    change(plan)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(plan))
    monkeypatch.setattr("tvmquant.quantization.calibrate", None)  # refused before it would be slow
    out = tmp_path / "library"
    message = run_cli(
        "compile", branches_onnx, "--data", branches_data, "--plan", path, "-o", out, "--quiet"
    )
    check_message(message, *parts)
    assert message.count("error:") == 1
    assert os.listdir(tmp_path) == ["mine.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema_version": 1}'])
def test_plans_that_are_no_plan(tmp_path, branches_onnx, branches_data, content):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    message = run_cli(
        "compile", branches_onnx, "--data", branches_data, "--plan", path, "-o", tmp_path / "out",
        "--quiet",
    )  # fmt: skip
    check_message(message, "plan", "mine.json", "mend it")
    assert os.listdir(tmp_path) == ["mine.json"]


def test_a_plan_does_not_spoil_a_library(tmp_path, branches_onnx, branches_data, branches_library):
    out = shutil.copytree(branches_library, tmp_path / "library")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    plan = tmp_path / "mine.json"
    plan.write_text((out / "plan.json").read_text().replace("w4a8", "w4a5"))
    run_cli(
        "compile", branches_onnx, "--data", branches_data, "--plan", plan, "-o", out, "--force",
        "--quiet",
    )  # fmt: skip
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("name", ["plan", "mixed-precision"])
def test_damaged_files_of_an_earlier_run(
    tmp_path, branches_onnx, branches_data, branches_library, name
):
    out = shutil.copytree(branches_library, tmp_path / "library")
    (damaged,) = out.glob(f"{name}*.json")
    damaged.write_text("{}")
    options = ["--size", "0.85x", "--choices", "w4a8", "--sensitivity", "output", "--quiet"]
    message = run_cli(
        "compile", branches_onnx, "--data", branches_data, "-o", out, "--threads", 1, *options
    )
    check_message(message, damaged.name, "schema_version")
    assert damaged.read_text() == "{}"


# -- targets and builds --------------------------------------------------------------------------


BAD_TARGETS = {
    "pentium9": ["pentium9"],
    "llvm -mcpu=nonsense": ["nonsense"],
    "-mtriple=mars-unknown-linux": ["mars"],
    "-mattr=avx2": ["avx2"],
    "cuda": ["cuda"],
    "aarch64-plan9": ["cross compiler", "aarch64-plan9"],
    "x86_64-apple-darwin": ["cross compiler", "x86_64-apple-darwin"],
    '{"mattr": 3}': ["features 3", "list"],
    "-jit=quick": ["jit", "quick"],
}


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_targets(tmp_path, small_onnx, small_data, network, target):
    with pytest.raises(TargetError) as error:
        build(network[3], target=target, out=tmp_path / "deep" / "library")
    check_message(str(error.value), *BAD_TARGETS[target])
    assert os.listdir(tmp_path) == []
    message = run_cli(
        "compile", small_onnx, "--data", small_data, f"--target={target}",
        "-o", tmp_path / "library",
    )  # fmt: skip
    check_message(message, *BAD_TARGETS[target])
    assert os.listdir(tmp_path) == []


BAD_OPTIONS = {
    "many samples": (["--samples", 10**30], ["limit", str(10**30)]),
    "long selection": (["--select", f"limit={10**30}"], ["limit", str(10**30)]),
    "huge images": (["--preprocess", '{"resize": 1000000}'], ["resize", "1000000", "32768"]),
    "huge inputs": (["--input-shape", f"x={10**12},3,8,8"], [str(10**12), "input", "2147483647"]),
    "no data": (["--data", ""], ["data '' does not exist"]),
    "activation scheme": (["--activation-scheme", "odd"], ["odd", "asymmetric or auto"]),
    "weight method": (["--weight-method", "odd"], ["odd", "mse or minmax"]),
    "calibration method": (["--calibration-method", "odd"], ["odd", "entropy"]),
    "threads": (["--threads", 10**6], ["--threads", "1024"]),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_compile_options(tmp_path, small_onnx, small_data, name):
    options, parts = BAD_OPTIONS[name]
    message = run_cli(
        "compile", small_onnx, "--data", small_data, "-o", tmp_path / "library", *options
    )
    check_message(message, *parts)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 5000}, "threads = 5000; expected 1 to 1024"),
        ({"batch": 0}, "batch = 0"),
        ({"batch": -2}, "batch = -2"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_build_options(tmp_path, network, options, message):
    with pytest.raises((QuantizationError, TargetError), match=message):
        build(network[3], out=tmp_path / "library", **options)
    assert os.listdir(tmp_path) == []


def abort(*_args, **_options):
    faulthandler.disable()  # which would print the stack of the test
    os.abort()


def be_killed(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*_args, **_options):
    raise RuntimeError("no such instruction")


@pytest.fixture
def compiled_anew(monkeypatch):
    """Compile what other tests have compiled already."""
    monkeypatch.setattr("tvmquant.deploy.build.compile_in_worker", compile_in_worker)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize(
    ("ending", "message"), [(abort, "SIGABRT"), (be_killed, "memory"), (fail, "no such instr")]
)
def test_a_compiler_that_dies(tmp_path, monkeypatch, network, small_library, ending, message):
    kept = tmp_path / "kept"
    shutil.copytree(small_library, kept)
    monkeypatch.setattr(relax, "build", ending)
    with pytest.raises(TargetError, match=message):
        build(network[3], out=tmp_path / "new")
    with pytest.raises(TargetError, match=message):
        build(network[3], out=kept, force=True)
    assert os.listdir(tmp_path) == ["kept"]
    load(kept)(network[1][:1])


INTERRUPTED = """
import os, signal, sys, time
from tvm import relax
from tvmquant.cli import main

def interrupt(*_args, **_options):
    time.sleep(0.3)  # Python drops an exception that strikes while it forks
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)

# a process that was started in the background ignores the signal
signal.signal(signal.SIGINT, signal.default_int_handler)
relax.build = interrupt
sys.argv[0] = "tvmquant"
main()
"""


def test_an_interrupted_build_leaves_nothing(tmp_path, small_onnx, small_data):
    arguments = ["compile", small_onnx, "--data", small_data, "-o", tmp_path / "library", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
    (calibration,) = os.listdir(tmp_path / "library")  # so that the next call goes on from there
    assert calibration.startswith("calibration")


@pytest.mark.usefixtures("compiled_anew")
def test_without_a_compiler(tmp_path, monkeypatch, network):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"needs a C or C\+\+ compiler"):
        build(network[3], out=tmp_path / "library")
    assert os.listdir(tmp_path) == []


def test_a_folder_of_something_else(tmp_path, small_onnx, small_data, network):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "manifest.json").write_text('{"name": "an extension of a browser"}')
    (theirs / "page.html").write_text("<html>")
    (tmp_path / "file").write_text("text")
    for out in (theirs, tmp_path / "file"):
        for force in (False, True):
            with pytest.raises(ArtifactError, match="not an artefact of tvmquant"):
                build(network[3], out=out, force=force)
    with pytest.raises(ArtifactError, match="cannot be written to"):
        build(network[3], out=tmp_path / "file" / "library")
    message = run_cli("compile", small_onnx, "--data", small_data, "-o", tmp_path / "file")
    check_message(message, "not an artefact")
    assert sorted(os.listdir(theirs)) == ["manifest.json", "page.html"]


def test_a_library_is_replaced_only_by_force(tmp_path, network, small_library):
    out = tmp_path / "library"
    shutil.copytree(small_library, out)
    with pytest.raises(ArtifactError, match="force"):
        build(network[3], out=out)
    build(network[3], out=out, force=True, batch=2)
    assert load(out).inputs[0].shape[0] == 2


def test_a_damaged_library_is_replaced(tmp_path, network, small_library):
    out = tmp_path / "library"
    shutil.copytree(small_library, out)
    (out / "manifest.json").write_text("{")
    build(network[3], out=out, force=True)
    load(out)
    (out / "manifest.json").unlink()
    build(network[3], out=out)
    load(out)


# -- artefacts -----------------------------------------------------------------------------------


def edit_manifest(change):
    def damage(out):
        content = json.loads((out / "manifest.json").read_text())
        change(content)
        (out / "manifest.json").write_text(json.dumps(content))

    return damage


def flip_a_byte(out):
    content = bytearray((out / "model.so").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "model.so").write_bytes(content)


DAMAGE = {
    "flipped byte": (flip_a_byte, ["model.so", "SHA-256", "build"]),
    "no library": (lambda out: (out / "model.so").unlink(), ["model.so", "build"]),
    "no manifest": (lambda out: (out / "manifest.json").unlink(), ["manifest.json", "build"]),
    "no folder": (shutil.rmtree, ["no such folder"]),
    "not JSON": (lambda out: (out / "manifest.json").write_text("{"), ["not valid JSON"]),
    "binary": (
        lambda out: (out / "manifest.json").write_bytes(b"\xff\xfe\x00"), ["not valid JSON"],
    ),
    "an array": (lambda out: (out / "manifest.json").write_text("[1]"), ["JSON object"]),
    "other schema": (
        edit_manifest(lambda m: m.update(schema_version=99)), ["schema version 99", "reads 1"],
    ),
    "no schema": (edit_manifest(lambda m: m.pop("schema_version")), ["schema version None"]),
    "field missing": (edit_manifest(lambda m: m.pop("threads")), ["'threads' is missing"]),
    "nested field missing": (
        edit_manifest(lambda m: m["library"].pop("sha256")), ["'library.sha256' is missing"],
    ),
    "field of a tensor": (
        edit_manifest(lambda m: m["inputs"][0].pop("shape")), ["'inputs[0].shape' is missing"],
    ),
    "wrong type": (edit_manifest(lambda m: m.update(layers="all")), ["'layers'", "list"]),
    "no objects": (edit_manifest(lambda m: m.update(inputs=[3])), ["'inputs[0]'", "object"]),
    "another processor": (
        edit_manifest(lambda m: m["target"]["features"].append("amx-future")),
        ["lacks amx-future", "native"],
    ),
    "another architecture": (
        edit_manifest(lambda m: m["target"].update(triple="s390x-linux-gnu")),
        ["s390x-linux-gnu", "native"],
    ),
    "another TVM": (
        edit_manifest(lambda m: m["versions"].update(tvm="0.1.0")), ["TVM 0.1.0", "build"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_artefacts(tmp_path, small_library, name):
    damage, parts = DAMAGE[name]
    out = tmp_path / "library"
    shutil.copytree(small_library, out)
    damage(out)
    with pytest.raises(ArtifactError) as error:
        load(out)
    check_message(str(error.value), *parts)
    np.save(tmp_path / "in.npy", np.zeros((1, 3, 8, 8), np.float32))
    message = run_cli("run", out, tmp_path / "in.npy", tmp_path / "out.npy")
    check_message(message, *parts)
    assert not (tmp_path / "out.npy").exists()


def test_a_library_that_is_no_library(tmp_path, small_library):
    from tvmquant.deploy.manifest import file_sha256

    out = tmp_path / "library"
    shutil.copytree(small_library, out)
    (out / "model.so").write_bytes(b"\x7fELF damaged")
    digest = file_sha256(out / "model.so")
    edit_manifest(lambda m: m["library"].update(sha256=digest))(out)
    with pytest.raises(ArtifactError) as error:
        load(out)
    check_message(str(error.value), "model.so", "cannot be loaded", "build again")


# -- running -------------------------------------------------------------------------------------


BAD_INPUTS = {
    "shape": (np.zeros((1, 3, 8, 9), np.float32), ["(1, 3, 8, 9)", "(1, 3, 8, 8)"]),
    "batch": (np.zeros((2, 3, 8, 8), np.float32), ["(2, 3, 8, 8)", "(1, 3, 8, 8)"]),
    "dtype": (np.zeros((1, 3, 8, 8)), ["float64", "float32"]),
    "integers": (np.zeros((1, 3, 8, 8), np.uint8), ["uint8", "float32"]),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_inputs(tmp_path, small_library, name):
    array, parts = BAD_INPUTS[name]
    with pytest.raises(DataError) as error:
        load(small_library)(array)
    check_message(str(error.value), "'x'", *parts)
    np.save(tmp_path / "in.npy", array)
    message = run_cli("run", small_library, tmp_path / "in.npy", tmp_path / "out.npy")
    check_message(message, *parts)
    assert os.listdir(tmp_path) == ["in.npy"]


@pytest.mark.parametrize("inputs", [(), (np.zeros((1, 3, 8, 8), np.float32),) * 2])
def test_number_of_inputs(small_library, inputs):
    with pytest.raises(DataError, match=f"found {len(inputs)} inputs; expected 1: x"):
        load(small_library)(*inputs)


@pytest.mark.parametrize("x", [None, 3.0, "image.png", [[1.0]]])
def test_inputs_that_are_no_tensors(small_library, x):
    with pytest.raises(DataError, match=r"'x' is a .* that cannot be read"):
        load(small_library)(x)


def test_loading_options(small_library):
    with pytest.raises(ArtifactError, match="threads = 0"):
        load(small_library, threads=0)


# -- the process ---------------------------------------------------------------------------------


def test_errors_of_passes_keep_their_type_and_carry_no_backtrace(tmp_path):
    """Across TVM's C interface, in a process that asks TVM for backtraces."""
    nodes = [conv(result="a"), helper.make_node("Softmax", ["a"], ["y"], "gate", axis=1)]
    path = write_model(tmp_path / "model.onnx", nodes, {"w": np.ones((8, 3, 1, 1))})
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(4, 3, 8, 8)))
    main = "from tvmquant.cli import main; main()"
    command = [sys.executable, "-c", main, "compile", path, "--strict", "--quiet"]
    command += ["--data", tmp_path / "data.npy", "-o", tmp_path / "library"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TVM_BACKTRACE": "1"}
    )
    assert done.returncode == 2
    assert done.stdout == ""
    check_message(done.stderr, "softmax", "gate", "strict")
