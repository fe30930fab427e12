import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tvmquant
from tvmquant.bit_choice import BitChoice

TUTORIAL = Path(__file__).resolve().parents[2] / "tutorials" / "cpp"
BATCH = 2
SHAPE = (BATCH, 3, 8, 8)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Build the example the way its CMakeLists.txt says, with the cmake of this environment."""
    beside_python = str(Path(sys.executable).parent)
    cmake = shutil.which("cmake", path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if cmake is None or compiler is None:
        pytest.skip("THE C++ EXAMPLE IS NOT TESTED: no C++ compiler (or no cmake) on this machine")
    build = tmp_path_factory.mktemp("cpp")
    for step in (
        [cmake, "-S", TUTORIAL, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"],
        [cmake, "--build", build],
    ):
        done = subprocess.run(step, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "run"


def build_library(onnx_file: Path, images: np.ndarray, out: Path, choices=None) -> Path:
    graph = tvmquant.load_onnx(onnx_file)
    quantized = tvmquant.quantize(graph, tvmquant.calibrate(graph, images), choices=choices)
    tvmquant.build(quantized, out=out, batch=BATCH, threads=2)
    return out


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(16, *SHAPE[1:])).astype("float32")


@pytest.fixture(scope="module")
def library(tmp_path_factory, small_onnx, images):
    return build_library(small_onnx, images, tmp_path_factory.mktemp("cpp") / "library")


def run(program, *arguments, **environment):
    return subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_equal_those_of_python(program, library, images, tmp_path, threads):
    model = tvmquant.load(library)
    for x in images.reshape(-1, *SHAPE):
        np.save(tmp_path / "x.npy", x)
        done = run(program, library, threads, tmp_path / "x.npy", tmp_path / "y.npy")
        assert done.returncode == 0, done.stderr
        y = np.load(tmp_path / "y.npy")
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, model(x))


def test_packed_weights_are_unpacked(program, images, tmp_path):
    """Nothing but the library itself takes part in it: the program is the same."""
    rng = np.random.default_rng(1)
    shapes = {"first": (64, 3, 3, 3), "second": (64, 64, 1, 1)}
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], "c"),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
        for name, shape in (("x", SHAPE[1:]), ("y", (64, 1, 1)))
    )
    graph = helper.make_graph(nodes, "narrow", [x], [y], weights)
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "x.onnx")
    choices = dict.fromkeys("ac", BitChoice.parse("w3a5"))
    library = build_library(tmp_path / "x.onnx", images, tmp_path / "w3a5", choices)
    # no weight is so large that it was taken out of the executable as it is
    assert b"tvmquant_weight" in (library / "model.so").read_bytes()
    np.save(tmp_path / "x.npy", images[:BATCH])
    done = run(program, library, 1, tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 0, done.stderr
    expected = tvmquant.load(library)(images[:BATCH])
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_bytes_are_read_as_they_are(program, tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["a"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", *SHAPE[1:]]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "bytes", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "b.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    library = build_library(tmp_path / "b.onnx", pixels, tmp_path / "library")
    np.save(tmp_path / "x.npy", pixels)
    done = run(program, library, 1, tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), tvmquant.load(library)(pixels))

    np.save(tmp_path / "x.npy", pixels.astype(np.float32))
    assert run(program, library, 1, tmp_path / "x.npy", tmp_path / "z.npy").returncode == 2


def test_every_output_is_written(program, small_onnx, images, tmp_path):
    proto = onnx.load(small_onnx)
    proto.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "two.onnx")
    library = build_library(tmp_path / "two.onnx", images, tmp_path / "library")
    np.save(tmp_path / "x.npy", images[:BATCH])
    paths = [tmp_path / f"{info.name}.npy" for info in tvmquant.load(library).outputs]
    done = run(program, library, 1, tmp_path / "x.npy", *paths)
    assert done.returncode == 0, done.stderr
    for path, expected in zip(paths, tvmquant.load(library)(images[:BATCH]), strict=True):
        np.testing.assert_array_equal(np.load(path), expected)

    done = run(program, library, 1, tmp_path / "x.npy", tmp_path / "only.npy")
    assert done.returncode == 2
    assert "the network has 2 outputs" in done.stderr
    assert not (tmp_path / "only.npy").exists()


def test_runs_without_the_compiler(program, library, images, tmp_path):
    np.save(tmp_path / "x.npy", images[:BATCH])
    arguments = (library, 1, tmp_path / "x.npy", tmp_path / "y.npy")
    done = run(program, *arguments, LD_DEBUG="libs")
    assert "libtvm_runtime.so" in done.stderr
    assert "libtvm_compiler" not in done.stderr


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((BATCH, 4, 8, 8), "float32"), "shape[1] mismatch"),
        (np.ones(SHAPE, "float64"), "expected float32, or the integers"),
        (np.asfortranarray(np.ones(SHAPE, "float32")), "expected float32, or the integers"),
    ],
)
def test_wrong_input_is_reported(program, library, tmp_path, x, message):
    np.save(tmp_path / "x.npy", x)
    done = run(program, library, 1, tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("content", [b"", b"not numpy at all", None])
def test_damaged_input_is_reported(program, library, tmp_path, content):
    path = tmp_path / "x.npy"
    if content is None:
        np.save(path, np.ones(SHAPE, "float32"))
        content = path.read_bytes()[:-1]
    path.write_bytes(content)
    done = run(program, library, 1, path, tmp_path / "y.npy")
    assert done.returncode == 2
    assert "x.npy: " in done.stderr


def test_missing_network_is_reported(program, tmp_path):
    np.save(tmp_path / "x.npy", np.ones(SHAPE, "float32"))
    done = run(program, tmp_path / "absent", 1, tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 2
    assert "absent/model.so" in done.stderr


def test_usage_is_reported(program, library):
    for arguments in ((), (library, "none", "x.npy", "y.npy")):
        done = run(program, *arguments)
        assert done.returncode == 2
        assert "usage:" in done.stderr
