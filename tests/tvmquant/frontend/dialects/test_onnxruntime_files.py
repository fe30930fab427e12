"""Files that ONNX Runtime's quantizer writes compute as before."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import tvmquant
from tvmquant.frontend import load_onnx
from tvmquant.simulator import simulate


@pytest.fixture(scope="module")
def float_model(tmp_path_factory, make_model):
    """Write a network with every operator that the QOperator format has, and return its path."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    constants = {
        "w1": draw(8, 3, 3, 3), "b1": draw(8), "w2": draw(8, 1, 3, 3), "b2": draw(8),
        "w3": draw(16, 12), "b3": draw(12), "w4": draw(12, 5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("LeakyRelu", ["a"], ["l"], alpha=0.1),
        helper.make_node("Conv", ["l", "w2", "b2"], ["c"], pads=[1] * 4, group=8),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["m"]),
        helper.make_node("Add", ["m", "l"], ["d"]),
        helper.make_node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("AveragePool", ["d"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["p", "q"], ["k"], axis=1),
        helper.make_node("GlobalAveragePool", ["k"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["e"]),
        helper.make_node("Relu", ["e"], ["r"]),
        helper.make_node("MatMul", ["r", "w4"], ["n"]),
        helper.make_node("Softmax", ["n"], ["y"]),
    ]
    for index, node in enumerate(nodes):
        node.name = f"n{index}"
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    onnx.save(make_model(nodes, {"x": ("N", 3, 16, 16)}, constants=constants, opset=21), path)
    return path


class Images(CalibrationDataReader):
    """Batches to calibrate with."""

    def __init__(self):
        rng = np.random.default_rng(1)
        draws = [rng.standard_normal((4, 3, 16, 16)).astype(np.float32) for _ in range(2)]
        self.batches = iter({"x": batch} for batch in draws)

    def get_next(self):
        return next(self.batches, None)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("activation", "weight"),
    [
        (QuantType.QUInt8, QuantType.QInt8),
        (QuantType.QUInt8, QuantType.QUInt8),
        (QuantType.QInt8, QuantType.QInt8),
    ],
)
def test_operators_on_integers(
    tmp_path, float_model, rewritten, run, activation, weight, per_channel
):
    """In this model nothing lies so near a tie that float32's error decides it."""
    path = tmp_path / "integers.onnx"
    quantize_static(
        float_model, path, Images(), quant_format=QuantFormat.QOperator, reduce_range=True,
        per_channel=per_channel, activation_type=activation, weight_type=weight,
    )  # fmt: skip
    model = onnx.load(path)
    assert {"QGemm", "QLinearConv", "QLinearMatMul"} <= {node.op_type for node in model.graph.node}
    data = {"x": np.random.default_rng(2).standard_normal((16, 3, 16, 16)).astype(np.float32)}
    result = rewritten(model)
    assert {node.domain for node in result.graph.node} == {""}
    (expected,) = run(model, data)
    np.testing.assert_array_equal(run(result, data)[0], expected)
    if weight is activation and per_channel:
        (found,) = simulate(tvmquant.quantize(load_onnx(path)), data["x"])
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weight", [QuantType.QUInt8, QuantType.QInt8])
def test_layers_quantized_by_the_range_of_their_input(
    tmp_path, float_model, rewritten, run, weight, per_channel
):
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(
        float_model, path, op_types_to_quantize=["Conv", "MatMul", "Gemm"], reduce_range=True,
        per_channel=per_channel, weight_type=weight,
    )  # fmt: skip
    model = onnx.load(path)
    data = {"x": np.random.default_rng(2).standard_normal((16, 3, 16, 16)).astype(np.float32)}
    result = rewritten(model)
    operators = [node.op_type for node in result.graph.node]
    assert (operators.count("Conv"), operators.count("MatMul")) == (2, 2)
    assert not {"Cast", "ConvInteger", "MatMulInteger"} & set(operators)
    np.testing.assert_allclose(run(result, data)[0], run(model, data)[0], rtol=1e-4, atol=1e-5)
