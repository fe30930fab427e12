"""Small ONNX graphs, and their results in ONNX Runtime and in TVM."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tvmquant.frontend import load_onnx
from tvmquant.graph import Graph
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.twin import Twin

Shape = Sequence[int | str | None]


def _make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str] = ("y",),
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
    element: int = TensorProto.FLOAT,
    output_element: int | None = None,
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Build a model; constants are arrays or finished tensors."""
    initialisers = [
        value
        if isinstance(value, TensorProto)
        else numpy_helper.from_array(np.asarray(value), name)
        for name, value in (constants or {}).items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, output_element or element, None) for name in outputs],
        initialisers,
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(name, version) for name, version in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _run_in_tvm(graph: Graph, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Compile with TVM's default pipeline, as quickly as LLVM can, and run.

    What brings its own quantizers runs in the torch twin: TVM knows no such operator.
    """
    if any(qop.is_call(value, qop.FAKE_QUANT) for _, value in bindings_of(graph.main)):
        tensors = [torch.from_numpy(inputs[name]) for name in graph.input_names]
        with torch.inference_mode():
            found = Twin(graph.module)(*tensors)
        return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    machine = relax.VirtualMachine(tvm.compile(graph.module, target=target), tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(inputs[name]) for name in graph.input_names])
    return (
        [result.numpy()] if isinstance(result, tvm.runtime.Tensor) else [r.numpy() for r in result]
    )


def _run_in_onnxruntime(
    model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Run without graph optimizations, sample by sample if the model fixes the batch at 1."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name, values = next(iter(inputs.items()))
    if session.get_inputs()[0].shape[:1] == [1] and len(values) > 1:
        samples = [session.run(None, {name: sample[None]}) for sample in values]
        return [np.concatenate(parts) for parts in zip(*samples, strict=True)]
    return session.run(None, dict(inputs))


def _random_inputs(graph: Graph, batch: int = 2) -> dict[str, np.ndarray]:
    """Draw inputs that fit a graph; integers are small."""
    rng = np.random.default_rng(7)
    inputs = {}
    for name, shape, dtype in graph.inputs:
        extents = [batch if d is None else d for d in shape]
        is_float = dtype == "float32"
        drawn = rng.standard_normal(extents) if is_float else rng.integers(-4, 5, extents)
        inputs[name] = drawn.astype(dtype)
    return inputs


def _operators(graph: Graph) -> list[str]:
    """List the operators of a graph in order."""
    names: list[str] = []

    def visit(node: relax.Expr) -> None:
        if isinstance(node, relax.Call):
            names.append(node.op.name.removeprefix("relax."))

    relax.analysis.post_order_visit(graph.main, visit)
    return names


def _compare(model: onnx.ModelProto, tolerance: float = 1e-5, **options: Any) -> Graph:
    """Import a model, check its results against ONNX Runtime, and return the graph."""
    graph = load_onnx(model, **options)
    relax.analysis.well_formed(graph.module)
    inputs = _random_inputs(graph)
    expected = _run_in_onnxruntime(model, inputs)
    for found, reference in zip(_run_in_tvm(graph, inputs), expected, strict=True):
        assert found.shape == reference.shape
        assert found.dtype == reference.dtype
        np.testing.assert_allclose(found, reference, rtol=tolerance, atol=tolerance)
    return graph


@pytest.fixture(scope="session")
def make_model() -> Callable[..., onnx.ModelProto]:
    """Function that builds a model of given nodes."""
    return _make_model


@pytest.fixture(scope="session")
def compare() -> Callable[..., Graph]:
    """Function that imports a model and checks it against ONNX Runtime."""
    return _compare


@pytest.fixture(scope="session")
def operators() -> Callable[[Graph], list[str]]:
    """Function that lists the operators of a graph."""
    return _operators
