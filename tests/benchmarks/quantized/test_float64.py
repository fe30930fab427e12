"""Quantized operators in float64 give the integers that ONNX Runtime gives, but for its noise."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.quantized import engines
from benchmarks.quantized.float64 import Float64Evaluator
from benchmarks.quantized.float64_arithmetic import quantized

RNG = np.random.default_rng(0)
# Weights of 7 bits: without VNNI, ONNX Runtime adds up two products in 16 bits, which saturate.
CONSTANTS = {
    "s": np.float32(0.021),
    "z": np.uint8(120),
    "t": np.float32(0.037),
    "u": np.uint8(90),
    "w": RNG.integers(-64, 64, (6, 4, 3, 3)).astype(np.int8),
    "ws": RNG.uniform(0.001, 0.004, 6).astype(np.float32),
    "wz": np.zeros(6, np.int8),
    "m": RNG.integers(-64, 64, (8, 6)).astype(np.int8),
    "ms": np.float32(0.003),
    "mz": np.int8(3),
    "b": RNG.integers(-999, 999, 6).astype(np.int32),
    "mu": np.uint8(0),
}
X, Y = ("q", "s", "z"), ("t", "u")
# operator, inputs, attributes
CASES = [
    ("QLinearConv", (*X, "w", "ws", "wz", *Y, "b"), {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
    ("QLinearMatMul", (*X, "m", "ms", "mz", *Y), {}),
    ("QLinearAdd", (*X, *X, *Y), {}),
    ("QLinearMul", (*X, *X, *Y), {}),
    ("QLinearConcat", (*Y, *X, *X), {"axis": 1}),
    ("QLinearGlobalAveragePool", (*X, *Y), {}),
    ("QLinearSigmoid", (*X, "ms", "mu"), {}),
    ("QLinearLeakyRelu", (*X, *Y), {"alpha": 0.2}),
]


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"), CASES, ids=[operator for operator, *_ in CASES]
)
def test_integers_are_those_of_onnxruntime(operator, inputs, attributes, tmp_path):
    domain = "" if operator in ("QLinearConv", "QLinearMatMul") else "com.microsoft"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(operator, list(inputs), ["y"], domain=domain, **attributes),
    ]
    used = sorted({"s", "z", *inputs} - {"q"})
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(CONSTANTS[k]), k) for k in used],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, tmp_path / "one.onnx")
    feeds = {"x": RNG.uniform(-2.6, 2.9, (2, 4, 8, 8)).astype(np.float32)}
    (expected,) = engines.run_onnxruntime(tmp_path / "one.onnx", [feeds])
    (found,) = Float64Evaluator(model).run(["y"], feeds)
    difference = np.abs(found.astype(int) - expected["y"].astype(int))
    assert found.dtype == np.uint8
    assert np.unique(found).size > 5
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 1


def test_ties_are_rounded_to_even():
    found = quantized(np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]), np.float32(1), np.int8(0))
    assert found.tolist() == [-2, -2, 0, 0, 2, 2]
