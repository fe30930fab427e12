"""Libraries of models that were quantized elsewhere compute what the simulator does."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tvmquant
from tests.tvmquant.qdq_models import Qdq
from tvmquant.frontend import load_onnx


def zero_points():
    """Weights whose steps do not fit 8 bits: dense, depthwise, and beside a residual."""
    g = Qdq()
    asymmetric = {"dtype": "uint8", "zero": 90, "low": 0, "high": 255}
    x = g.pair("x")
    y = g.node("Conv", x, g.weight((4, 4, 3, 3), **asymmetric), g.bias(4), pads=[1, 1, 1, 1])
    y = g.pair(g.node("Add", y, x), 0.0713)
    y = g.pair(g.node("Conv", y, g.weight((4, 1, 3, 3), **asymmetric), group=4), 0.0413)
    y = g.node("Gemm", g.node("Flatten", y), g.weight((48, 5), **asymmetric, axis=1), g.bias(5))
    return g.model(g.pair(y, 0.0831))


def dyadic():
    """Scales that are powers of two, so that ties are frequent; a linear resize among them."""
    g = Qdq(scale=2.0**-5)
    levels = np.arange(-16, 16, dtype=np.int8).reshape(8, 4, 1, 1)
    w = g.node("DequantizeLinear", levels, np.float32(2.0**-6))
    y = g.pair(g.node("Conv", g.pair("x"), w), 2.0**-4)
    y = g.pair(g.node("AveragePool", y, kernel_shape=[2, 2]), 2.0**-4)
    scales = np.array([1, 1, 2, 2], np.float32)
    y = g.pair(g.node("Resize", y, "", scales, mode="linear"), 2.0**-3)
    return g.model(g.pair(g.node("Add", y, y), 2.0**-2))


def wide():
    """Activations of 16 bits, and results that no quantizer ends."""
    g = Qdq("uint16", 31000, 0.0002)
    x = g.pair("x")
    y = g.node("Conv", x, g.weight((8, 4, 3, 3), axis=0), g.bias(8), pads=[1, 1, 1, 1])
    return g.model(g.node("Conv", g.pair(g.node("Relu", y)), g.weight((4, 2, 1, 1)), group=4))


def joined():
    """Inputs that meet in a concat, whose quantizers stand at the border."""
    g = Qdq()
    parts = [g.pair("x"), g.pair("x", 0.0711)]
    return g.model(g.pair(g.node("Concat", *parts, *parts, *parts, *parts, axis=1)))


@pytest.mark.parametrize("model", [zero_points, dyadic, wide, joined], ids=lambda f: f.__name__)
def test_a_library_equals_the_simulator(model, tmp_path):
    graph = tvmquant.quantize(load_onnx(model()), strict=True)
    tvmquant.build(graph, out=tmp_path / "library", batch=2)
    library = tvmquant.load(tmp_path / "library")
    x = np.random.default_rng(0).normal(0, 2, (2, 4, 6, 5)).astype(np.float32)
    (expected,) = tvmquant.simulate(graph, x)
    assert len(np.unique(expected)) > 5
    assert_array_equal(library(x), expected)
