"""Sums of all before equal ONNX Runtime; its products of all before came later."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.simulator import simulate

INPUT = {"x": ("N", 5, 4)}


@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.INT64])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("axis", [1, -1])
def test_cumulative_sums(make_model, compare, element, reverse, exclusive, axis):
    node = helper.make_node("CumSum", ["x", "a"], ["y"], reverse=reverse, exclusive=exclusive)
    compare(make_model([node], INPUT, constants={"a": np.array(axis)}, element=element))


@pytest.mark.parametrize("exclusive", [0, 1])
def test_cumulative_products(make_model, exclusive):
    node = helper.make_node("CumProd", ["x", "a"], ["y"], exclusive=exclusive)
    model = make_model([node], INPUT, constants={"a": np.array(2)}, opset=26)
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    (found,) = simulate(load_onnx(model), x)
    expected = np.cumprod(x, 2)
    if exclusive:
        expected = np.concatenate([np.ones((2, 5, 1)), expected[..., :-1]], 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("element", "axis", "message"),
    [
        (TensorProto.FLOAT, 0, "along the batch axis"),
        (TensorProto.FLOAT, 3, "axis 3 does not exist"),
        (TensorProto.UINT32, 1, "type uint32, expected one of float32"),
    ],
)
def test_other_sums_are_rejected(make_model, element, axis, message):
    node = helper.make_node("CumSum", ["x", "a"], ["y"], name="sums")
    model = make_model([node], INPUT, constants={"a": np.array(axis)}, element=element)
    with pytest.raises(UnsupportedModelError, match=rf"sums \(CumSum\): .*{message}"):
        load_onnx(model)
