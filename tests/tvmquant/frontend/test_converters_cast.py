"""Casts and identities equal ONNX Runtime."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.simulator import simulate

IMAGE = {"x": ("N", 3, 5, 4)}


def test_identities_vanish(make_model, compare, operators):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["d"], ["y"]),
    ]
    assert operators(compare(make_model(nodes, IMAGE))) == ["negative"]


def test_dropout_in_training_mode_is_rejected(make_model):
    node = helper.make_node("Dropout", ["x", "", "t"], ["y"], name="drop")
    model = make_model([node], IMAGE, constants={"t": np.array(True)})
    with pytest.raises(UnsupportedModelError, match=r"drop \(Dropout\): .*training mode"):
        load_onnx(model)


@pytest.mark.parametrize("opset", [13, 9, 7])
def test_a_mask_of_dropout_is_full(make_model, operators, opset):
    nodes = [
        helper.make_node("Dropout", ["x"], ["a", "m"]),
        helper.make_node("Cast", ["m"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    (found,) = simulate(
        load_onnx(make_model(nodes, IMAGE, opset=opset)), np.zeros((2, 3, 5, 4), "f")
    )
    np.testing.assert_array_equal(found, np.ones((2, 3, 5, 4)))


def test_dropout_of_nothing_may_train(make_model, compare):
    node = helper.make_node("Dropout", ["x", "r", "t"], ["y"])
    compare(make_model([node], IMAGE, constants={"r": np.float32(0), "t": np.array(True)}))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "bool"])
def test_casts_to_integers(make_model, compare, dtype):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=element),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("CastLike", ["c", "b"], ["y"]),
    ]
    compare(make_model(nodes, IMAGE, output_element=element))


def test_constants_are_cast_like_data(make_model, operators):
    nodes = [helper.make_node("CastLike", ["c", "x"], ["d"]), helper.make_node("Mul", "xd", ["y"])]
    model = make_model(nodes, IMAGE, constants={"c": np.array([1, 2, 3, 4])})
    assert operators(load_onnx(model)) == ["multiply"]


@pytest.mark.parametrize("element", [TensorProto.STRING, TensorProto.FLOAT8E5M2, TensorProto.INT4])
def test_types_that_no_library_holds_are_rejected(make_model, element):
    node = helper.make_node("Cast", ["x"], ["y"], name="cast", to=element)
    model = make_model([node], IMAGE, opset=21, output_element=element)
    with pytest.raises(
        UnsupportedModelError, match=r"cast \(Cast\): it casts to .* expected one of"
    ):
        load_onnx(model)
