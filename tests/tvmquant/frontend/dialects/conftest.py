"""Models of quantized dialects before and after they are rewritten, in ONNX Runtime."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tvmquant.frontend.dialects import rewrite_model
from tvmquant.frontend.prepare import check_with_onnx, prepare


def _rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its nodes rewritten, all of which must have been."""
    prepared, refused = rewrite_model(prepare(model, "test"))
    assert not refused
    check_with_onnx(prepared.nodes, "test")
    constants = [numpy_helper.from_array(a, name) for name, a in prepared.constants.items()]
    graph = helper.make_graph(
        [node.proto for node in prepared.nodes],
        "test",
        list(prepared.inputs),
        list(prepared.outputs),
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(inputs))


def _equal_to_original(
    model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], *, ties: float = 0.0
) -> onnx.ModelProto:
    """Check that a rewritten model computes the same integers, and return it.

    Parameters
    ----------
    model : onnx.ModelProto
    inputs : mapping of str to array
    ties : float
        The share of integers that may differ by one step.
    """
    result = _rewritten(model)
    for found, expected in zip(_run(result, inputs), _run(model, inputs), strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
        assert distance.max() <= 1
        assert distance.mean() <= ties
    return result


@pytest.fixture(scope="session")
def rewritten() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """Function that returns a model with its nodes rewritten."""
    return _rewritten


@pytest.fixture(scope="session")
def run() -> Callable[..., list[np.ndarray]]:
    """Function that runs a model without optimizations."""
    return _run


@pytest.fixture(scope="session")
def equal_to_original() -> Callable[..., onnx.ModelProto]:
    """Function that compares a model's integers with those after it is rewritten."""
    return _equal_to_original
