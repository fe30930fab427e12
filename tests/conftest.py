"""Fixtures that tests of several packages share."""

import contextlib
import fcntl
import gc
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.brief_tuning import brief_tuning

# Importing everything makes a million objects that live on: they are not searched for garbage
# while they are made, and later neither.
gc.disable()

CLASSES = 10

# The same examples in every run, however slow or busy the machine is.
hypothesis.settings.register_profile(
    "tvmquant",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tvmquant")


def pytest_collection_finish() -> None:
    """Search for garbage among what tests make alone."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _kernels_trust_their_callers() -> Iterator[None]:
    """Compile what this process compiles without checks of arguments."""
    from tests.trusting_kernels import trusting_kernels

    with trusting_kernels():
        yield


@pytest.fixture(scope="session", autouse=True)
def _equal_modules_are_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let builds of equal modules, in whatever test and process, share what LLVM makes of them.

    All else of a build is done each time. The key is the whole module, weights included.
    """
    import tvm
    from tvm import relax

    from tvmquant.deploy import build

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "compiled"
    folder.mkdir(exist_ok=True)
    compile_in_worker = build.compile_in_worker

    def compile_once(module: tvm.IRModule, target: tvm.target.Target, library: Path) -> None:
        relax.analysis.well_formed(module)  # of kernels and what they are called with, too
        text = f"{tvm.ir.save_json(module)} {target}"
        kept = folder / hashlib.sha256(text.encode()).hexdigest()
        with _locked(kept.with_suffix(".lock")):
            if not kept.exists():
                compile_in_worker(module, target, library)
                shutil.copyfile(library, kept)
                return
        # a copy: tests damage libraries
        shutil.copyfile(kept, library)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "compile_in_worker", compile_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _workers_are_forked() -> Iterator[None]:
    """Let worker processes of TVM start without importing everything anew."""
    from tests.warm_workers import warm_workers

    with warm_workers():
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file, waiting for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of real models and data; skip, saying so, where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared"
    path = Path(os.environ.get("TVMQUANT_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"no real models and data at {path}; set TVMQUANT_SHARED to their folder")
    return path


@pytest.fixture(scope="session")
def brief_timing() -> Iterator[None]:
    """Measure latencies for a moment only: tests do not ask how long anything takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tvmquant.network_latency.ROUNDS", 1)
        patch.setattr("tvmquant.network_latency.ROUND_SECONDS", 0.0)
        patch.setattr("tvmquant.network_latency.SECONDS", 0.0)
        patch.setattr("tvmquant.network_latency.RUNS", 2)
        yield


@pytest.fixture(name="brief_tuning")
def _brief_tuning() -> Iterator[None]:
    """Tune for a moment only, as above."""
    with brief_tuning():
        yield


@pytest.fixture(scope="session")
def tracker_port() -> Iterator[int]:
    """Start a tracker of TVM's RPC on the loopback interface; return its port."""
    pytest.importorskip("tornado", reason="TVM's RPC tracker needs tornado")
    from tests.rpc_devices import running_tracker

    with running_tracker() as port:
        yield port


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolution, ReLU, global pooling and a classifier: (N, 3, 8, 8) -> (N, 10)."""
    rng = np.random.default_rng(0)
    weights = {
        "conv_weight": rng.normal(size=(8, 3, 3, 3)),
        "conv_bias": rng.normal(size=8),
        "fc_weight": rng.normal(size=(CLASSES, 8)),
        "fc_bias": rng.normal(size=CLASSES),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv_weight", "conv_bias"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc_weight", "fc_bias"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(w.astype("float32"), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    onnx.save(model, path)
    return path
