import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import stat

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tvmquant.bit_choice import W4A8, W8A8
from tvmquant.deploy import build as build_module
from tvmquant.deploy.build import build
from tvmquant.deploy.loader import load
from tvmquant.deploy.manifest import Manifest, file_sha256
from tvmquant.errors import ArtifactError, QuantizationError, TargetError
from tvmquant.frontend import load_onnx
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.quantization import calibrate, quantize
from tvmquant.simulator import simulate
from tvmquant.weight_pairs import bound_pairs


class BrokenError(Exception):
    """A failure that no code of ours expects."""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def library(built, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(built, tmp_path / "library")


@pytest.fixture
def copy_instead(built, monkeypatch):
    """Copy a library instead of compiling one, for what happens around it."""
    monkeypatch.setattr(
        build_module,
        "compile_in_worker",
        lambda _module, _target, library: shutil.copyfile(built / "model.so", library),
    )


def test_the_manifest_describes_the_library(built):
    manifest = Manifest.load(built)
    assert manifest.library == {
        "sha256": file_sha256(built / "model.so"),
        "bytes": (built / "model.so").stat().st_size,
    }
    assert manifest.model["name"] == "small"
    (x,), (y,) = manifest.inputs, manifest.outputs
    assert (x.name, x.shape, x.dtype, x.layout) == ("x", [1, 3, 8, 8], "float32", "NCHW")
    assert (x.raw_shape, x.raw_dtype, x.raw_layout) == ([1, 8, 8, 3], "uint8", "NHWC")
    assert (y.name, y.shape, y.dtype, y.layout) == ("y", [1, 10], "float32", "")
    assert manifest.threads == 1
    assert manifest.float_audit == []
    assert manifest.versions == {
        "tvmquant": importlib.metadata.version("tvmquant"),
        "tvm": importlib.metadata.version("apache-tvm"),
    }
    layers = {layer.id: layer for layer in manifest.layers}
    assert layers["conv"].macs == 8 * 8 * 8 * 27
    assert layers["fc"].macs == 80
    assert layers["conv"].choice == "w8a8"


@pytest.mark.parametrize("bounded", [True, False])
def test_the_manifest_says_how_pairs_of_weights_are_rounded(
    branches_onnx, branches_data, tmp_path, bounded
):
    graph = load_onnx(branches_onnx)
    calibration = calibrate(graph, np.load(branches_data))
    quantized = quantize(graph, calibration, bound_pairs=bounded)
    manifest = build(quantized, out=tmp_path / "library", threads=1)
    said = {layer.id: layer.weight_pairs for layer in manifest.layers if layer.choice}
    held = {}
    for _, call in bindings_of(quantized.main):
        if qop.is_call(call, *qop.CONTRACTIONS):
            weight = qop.constant_array(call.args[1])
            if weight.ndim == 4:  # channels last
                weight = weight.transpose(0, 3, 1, 2)
            held[qop.attributes(call)["id"]] = np.array_equal(bound_pairs(weight), weight)
    assert said.keys() == held.keys()
    assert all(held[name] for name, pairs in said.items() if pairs == "bounded")
    assert ("bounded" in said.values()) == bounded
    assert (said["left"], held["left"]) == (("bounded", True) if bounded else ("free", False))


def test_four_bit_weights_make_the_file_smaller(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(512, 512)).astype("float32")
    network = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight"], ["y"], "fc", transB=1)],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 512])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(network, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "dense.onnx")
    graph = load_onnx(tmp_path / "dense.onnx")
    images = rng.normal(size=(8, 512)).astype("float32")
    calibration = calibrate(graph, images)
    sizes = {}
    for choice in (W8A8, W4A8):
        quantized = quantize(graph, calibration, choices={"fc": choice})
        folder = tmp_path / str(choice)
        build(quantized, out=folder, threads=1)
        (expected,) = simulate(quantized, images[:1])
        np.testing.assert_array_equal(load(folder)(images[:1]), expected)
        sizes[choice] = (folder / "model.so").stat().st_size
    assert sizes[W8A8] > weight.size
    # half of the weights, less what code for nibbles takes
    assert sizes[W8A8] - sizes[W4A8] > 0.4 * weight.size


def test_what_is_returned_is_what_is_written(quantized, tmp_path):
    stages = []
    manifest = build(
        quantized,
        out=tmp_path / "made" / "library",
        threads=2,
        batch=3,
        target="haswell",
        model={"path": "small.onnx"},
        preprocess={"resize": 8},
        progress=stages.append,
    )
    assert stages == ["kernels", "compile"]
    assert Manifest.load(tmp_path / "made" / "library") == manifest
    assert (manifest.threads, manifest.inputs[0].shape) == (2, [3, 3, 8, 8])
    assert "haswell" in manifest.target["config"]
    assert manifest.target["triple"].startswith("x86_64")
    assert "avx2" in manifest.target["features"]
    assert "avx512f" not in manifest.target["features"]
    assert manifest.model == {"name": "small", "path": "small.onnx"}
    assert manifest.preprocess == {"resize": 8}


@pytest.mark.usefixtures("copy_instead")
def test_the_default_is_a_thread_for_each_physical_core(quantized, tmp_path, monkeypatch):
    monkeypatch.setattr("tvmquant.machine.physical_cores", lambda: 3)
    assert build(quantized, out=tmp_path / "library").threads == 3


def test_others_may_read_the_folder(built):
    assert stat.S_IMODE(built.stat().st_mode) == 0o755
    assert sorted(os.listdir(built)) == ["manifest.json", "model.so"]
    assert os.listdir(built.parent) == ["library"]


@pytest.mark.usefixtures("copy_instead")
def test_the_folder_may_be_relative(quantized, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(quantized, out="library")
    assert os.listdir(tmp_path) == ["library"]


def test_a_float_graph_becomes_a_float_library(small_onnx, float_graph, images, tmp_path):
    manifest = build(float_graph, out=tmp_path / "library", threads=1)
    assert not manifest.has_raw
    assert manifest.inputs[0].scale is None
    assert {layer.dtype for layer in manifest.layers} == {"float32"}
    with pytest.raises(ArtifactError, match="no raw integer entry"):
        load(tmp_path / "library", raw=True)
    (logits,) = ReferenceEvaluator(str(small_onnx)).run(None, {"x": images[:1]})
    np.testing.assert_allclose(load(tmp_path / "library")(images[:1]), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"batch": 0}, {"threads": -1}])
def test_wrong_options(quantized, tmp_path, options):
    with pytest.raises((QuantizationError, TargetError), match=r"expected (at least 1|1 to 1024)"):
        build(quantized, out=tmp_path / "a" / "library", **options)
    assert os.listdir(tmp_path) == []


# Where a build may fail: the name of what fails in tvmquant.deploy.build.
STEPS = [
    "Machine.of",
    "compile_in_worker",
    "describe_tensors",
    "describe_layers",
    "file_sha256",
    "Manifest.save",
    "os.rename",
]


@pytest.fixture
def fail_at(monkeypatch):
    """Return a function that makes a step of the build raise."""

    def fail_at(step):
        def fail(*_args, **_options):
            raise BrokenError

        owner, _, name = step.rpartition(".")
        monkeypatch.setattr(getattr(build_module, owner) if owner else build_module, name, fail)

    return fail_at


@pytest.mark.usefixtures("copy_instead")
@pytest.mark.parametrize("step", STEPS)
def test_a_failed_build_leaves_nothing(quantized, tmp_path, fail_at, step):
    fail_at(step)
    with pytest.raises(BrokenError):
        build(quantized, out=tmp_path / "deep" / "er" / "library")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("copy_instead")
@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_failed_build_keeps_the_library_before(quantized, library, tmp_path, fail_at, step):
    before = contents(library)
    fail_at(step)
    with pytest.raises(BrokenError):
        build(quantized, out=library, force=True)
    assert contents(library) == before
    assert os.listdir(tmp_path) == ["library"]


@pytest.mark.usefixtures("copy_instead")
@pytest.mark.parametrize("moved", [0, 1])
def test_a_half_replaced_library_is_none_and_can_be_built_again(
    quantized, library, tmp_path, monkeypatch, moved
):
    replace, calls = os.replace, []

    def fail_after(source, target):
        calls.append(source)
        if len(calls) > moved:
            raise BrokenError
        replace(source, target)

    monkeypatch.setattr(build_module.os, "replace", fail_after)
    with pytest.raises(BrokenError):
        build(quantized, out=library, force=True)
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json; build"):
        load(library)
    monkeypatch.setattr(build_module.os, "replace", replace)
    build(quantized, out=library)
    load(library)
    assert os.listdir(tmp_path) == ["library"]


def test_an_interrupt_leaves_nothing(quantized, tmp_path, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "compile_in_worker", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(quantized, out=tmp_path / "library")
    assert os.listdir(tmp_path) == []


def killed_while_compiling(quantized, out):
    """Build in a process that is killed when the library is half written."""

    def die(_module, _target, library):
        library.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        build_module.compile_in_worker = die
        build(quantized, out=out)

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12's of any thread
def test_the_next_build_takes_away_what_a_killed_one_left(quantized, tmp_path):
    out = tmp_path / "library"
    (tmp_path / ".library.theirs00").mkdir()
    (tmp_path / ".library.theirs00" / "notes.txt").write_text("mine")
    killed_while_compiling(quantized, out)
    assert not out.exists()
    assert len(os.listdir(tmp_path)) == 2
    build(quantized, out=out)
    load(out)
    assert sorted(os.listdir(tmp_path)) == [".library.theirs00", "library"]


def test_a_build_at_work_is_left_alone(quantized, tmp_path, monkeypatch):
    compile_in_worker, seen = build_module.compile_in_worker, []

    def build_inside(module, target, library):
        if not seen:
            seen.append(library)
            build(quantized, out=tmp_path / "library")
        assert library.parent.is_dir()
        compile_in_worker(module, target, library)

    monkeypatch.setattr(build_module, "compile_in_worker", build_inside)
    build(quantized, out=tmp_path / "library")
    load(tmp_path / "library")
    assert os.listdir(tmp_path) == ["library"]


def test_a_library_is_replaced_only_by_force(quantized, library):
    before = contents(library)
    with pytest.raises(ArtifactError, match=r"pass force \(--force\)"):
        build(quantized, out=library)
    assert contents(library) == before
    build(quantized, out=library, force=True, batch=2)
    assert load(library).inputs[0].shape[0] == 2


@pytest.mark.usefixtures("copy_instead")
def test_what_else_tvmquant_wrote_there_is_kept(quantized, library):
    (library / "calibration-1.json").write_text("{}")
    build(quantized, out=library, force=True)
    assert sorted(os.listdir(library)) == ["calibration-1.json", "manifest.json", "model.so"]


@pytest.mark.usefixtures("copy_instead")
def test_a_folder_that_an_unfinished_run_began_is_used(quantized, tmp_path):
    out = tmp_path / "library"
    out.mkdir()
    (out / "calibration-1.json").write_text("{}")
    build(quantized, out=out)
    load(out)


FOREIGN = {
    "another file": lambda out: (out / "notes.txt").write_text("mine"),
    "a folder": lambda out: (out / "data").mkdir(),
    "another manifest": lambda out: (
        (out / "manifest.json").write_text(json.dumps({"name": "an extension"})),
        (out / "page.html").write_text("<html>"),
    ),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_folder_is_left_alone(quantized, tmp_path, name, force):
    out = tmp_path / "theirs"
    out.mkdir()
    FOREIGN[name](out)
    before = sorted(os.listdir(out))
    with pytest.raises(ArtifactError, match="is not an artefact of tvmquant; choose another"):
        build(quantized, out=out, force=force)
    assert sorted(os.listdir(out)) == before
    assert os.listdir(tmp_path) == ["theirs"]


def test_a_folder_that_cannot_be_made(quantized, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"file cannot be written to: "):
        build(quantized, out=tmp_path / "file" / "library")


def test_batches_compute_what_single_images_do(quantized, images, tmp_path):
    build(quantized, out=tmp_path / "library", batch=4, threads=1)
    result = load(tmp_path / "library")(images[:4])
    np.testing.assert_array_equal(result, *simulate(quantized, images[:4]))
