"""A small network as ONNX, data for it, and the library it is compiled into."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

CLASSES = 10


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


@pytest.fixture(scope="session")
def small_data(small_onnx: Path) -> Path:
    """Forty inputs whose labels are what the float model answers."""
    images = np.random.default_rng(1).normal(size=(40, 3, 8, 8)).astype("float32")
    (logits,) = ReferenceEvaluator(str(small_onnx)).run(None, {"x": images})
    path = small_onnx.parent / "data.npz"
    np.savez(path, images=images, labels=logits.argmax(1))
    return path


@pytest.fixture(scope="session")
def small_library(small_onnx: Path, small_data: Path) -> Path:
    """The network compiled for this machine, one thread."""
    from tvmquant.compilation import compile_onnx

    out = small_onnx.parent / "library"
    compile_onnx(small_onnx, small_data, out=out, threads=1)
    return out
