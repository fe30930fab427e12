"""A QuantizeLinear gives the integers of equation (1), whatever their limits."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.tvmquant.random_graphs import run_onnxruntime
from tvmquant.arithmetic import dequantize, quantize_half_even
from tvmquant.export.builder import OnnxBuilder
from tvmquant.export.quantizers import Quantizer


def result(quantizer: Quantizer, x: np.ndarray, opset: int) -> np.ndarray:
    builder = OnnxBuilder(opset, ["x"])
    y = quantizer.write(builder, "x", "edge")
    graph = helper.make_graph(
        builder.nodes,
        "edge",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, x.shape)],
        builder.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (found,) = run_onnxruntime(model, x)
    return found


def samples(scale: float) -> np.ndarray:
    """Return values around every tie of 8 bits, and beyond all ranges."""
    ties = (np.arange(-600, 600) / 2).astype(np.float32) * np.float32(scale)
    near = np.concatenate([np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, -np.inf)])
    return np.concatenate([ties, near, np.float32([1e30, -1e30, 0.0])]).astype(np.float32)


@settings(max_examples=60)
@given(
    st.floats(2.0**-20, 2.0**20, width=32), *[st.integers(0, 255)] * 3, st.sampled_from([13, 21]),
)  # fmt: skip
def test_eight_bits_of_any_range(scale, first, second, zero, opset):
    qmin, qmax = sorted((first, second))
    zero = min(max(zero, qmin), qmax)
    x = samples(scale)
    found = result(Quantizer(np.float32(scale), zero, qmin, qmax), x, opset)
    q = quantize_half_even(x, scale, zero, qmin, qmax, "uint8")
    np.testing.assert_array_equal(found, dequantize(q, scale, zero))


@pytest.mark.parametrize(("qmin", "qmax"), [(-32768, 32767), (-32767, 32767), (1, 32767), (-5, 9)])
def test_sixteen_bits_of_any_range(qmin, qmax):
    scale = np.float32(0.0371)
    x = np.concatenate([samples(scale), np.float32([1300.0, -1300.0, 1215.6, -1215.6])])
    found = result(Quantizer(scale, 0, qmin, qmax, "int16"), x, 21)
    q = quantize_half_even(x, float(scale), 0, qmin, qmax, "int16")
    np.testing.assert_array_equal(found, dequantize(q, scale, 0))


def test_a_scale_for_each_channel():
    scale = np.float32([0.5, 0.25, 0.125])
    x = np.random.default_rng(0).normal(0, 30, (4, 3, 5)).astype(np.float32)
    found = result(Quantizer.along(scale, 1, 7, 0, 15, "uint8"), x, 13)
    for channel in range(3):
        q = quantize_half_even(x[:, channel], float(scale[channel]), 7, 0, 15, "uint8")
        np.testing.assert_array_equal(found[:, channel], dequantize(q, scale[channel], 7))
