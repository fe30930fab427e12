"""Fixtures that tests of several packages share."""

import os
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10

# The same examples in every run, however slow or busy the machine is.
hypothesis.settings.register_profile(
    "tvmquant",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tvmquant")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of real models and data; skip, saying so, where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared"
    path = Path(os.environ.get("TVMQUANT_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"no real models and data at {path}; set TVMQUANT_SHARED to their folder")
    return path


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
