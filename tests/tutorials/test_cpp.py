import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TUTORIAL = Path(__file__).resolve().parents[2] / "tutorials" / "cpp"
TWO_OUTPUTS = 2
CHANNELS = 3


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


def build_network(directory: Path, outputs: int) -> Path:
    """Compile ``relu(x) + [0, 1, 2]``, and its sum over the last axis if two outputs are asked."""
    import tvm
    from tvm import relax

    x = relax.Var("x", relax.TensorType((2, CHANNELS), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            bias = relax.const(np.arange(CHANNELS, dtype="float32"))
            y = builder.emit(relax.op.add(relax.op.nn.relu(x), bias))
            if outputs == TWO_OUTPUTS:
                result = relax.Tuple([y, builder.emit(relax.op.sum(y, axis=1))])
            else:
                result = y
            result = builder.emit_output(result)
        builder.emit_func_output(result)
    tvm.compile(builder.get(), target="llvm").export_library(str(directory / "model.so"))
    return directory


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return build_network(tmp_path_factory.mktemp("network"), outputs=1)


def run(program, *arguments, **environment):
    return subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_output_equals_the_networks(program, network, tmp_path):
    x = np.random.default_rng(0).normal(size=(2, CHANNELS)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    for threads in (1, 2):
        y_path = tmp_path / f"y{threads}.npy"
        done = run(program, network, threads, tmp_path / "x.npy", y_path)
        assert done.returncode == 0, done.stderr
        expected = np.maximum(x, 0) + np.arange(CHANNELS, dtype="float32")
        np.testing.assert_array_equal(np.load(y_path), expected)


def test_every_output_of_a_tuple_is_written(program, tmp_path):
    network = build_network(tmp_path, outputs=TWO_OUTPUTS)
    np.save(tmp_path / "x.npy", np.ones((2, CHANNELS), "float32"))
    done = run(program, network, 1, *(tmp_path / name for name in ("x.npy", "y.npy", "z.npy")))
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), [[1, 2, 3]] * 2)
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), [6, 6])


def test_runs_without_the_compiler(program, network, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, CHANNELS), "float32"))
    arguments = (network, 1, tmp_path / "x.npy", tmp_path / "y.npy")
    done = run(program, *arguments, LD_DEBUG="libs")
    assert "libtvm_runtime.so" in done.stderr
    assert "libtvm_compiler" not in done.stderr


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, CHANNELS + 1), "float32"), "shape[1] mismatch"),
        (np.ones((2, CHANNELS), "float64"), "expected float32 in C order"),
        (np.asfortranarray(np.ones((2, CHANNELS), "float32")), "expected float32 in C order"),
    ],
)
def test_wrong_input_is_reported(program, network, tmp_path, x, message):
    np.save(tmp_path / "x.npy", x)
    done = run(program, network, 1, tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("content", [b"", b"not numpy at all", None])
def test_damaged_input_is_reported(program, network, tmp_path, content):
    path = tmp_path / "x.npy"
    if content is None:
        np.save(path, np.ones((2, CHANNELS), "float32"))
        content = path.read_bytes()[:-1]
    path.write_bytes(content)
    done = run(program, network, 1, path, tmp_path / "y.npy")
    assert done.returncode == 2
    assert "x.npy: " in done.stderr


def test_missing_network_is_reported(program, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, CHANNELS), "float32"))
    done = run(program, tmp_path / "absent", 1, tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 2
    assert "absent/model.so" in done.stderr


def test_usage_is_reported(program, network):
    for arguments in ((), (network, "none", "x.npy", "y.npy")):
        done = run(program, *arguments)
        assert done.returncode == 2
        assert "usage:" in done.stderr
