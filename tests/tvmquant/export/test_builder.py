import numpy as np
import onnx
from onnx import numpy_helper

from tvmquant.export.builder import OnnxBuilder


def test_names_are_unique_and_kept_where_they_are_free():
    builder = OnnxBuilder(21, ["x", "y"])
    first = builder.node("Relu", ["x"], "layer")
    second = builder.node("Relu", [first], "layer")
    third = builder.node("Relu", [second], "y")
    assert [node.name for node in builder.nodes] == ["layer", "layer:2", "y"]
    assert (first, second, third) == ("layer", "layer:2", "y:2")


def test_small_constants_are_shared_and_keep_their_axes():
    builder = OnnxBuilder(21, [])
    scalar = builder.constant(np.float32(2.0), "a")
    assert builder.constant(np.float32(2.0), "b") == scalar
    vector = builder.constant(np.float32([2.0]), "c")
    assert vector != scalar
    shapes = {c.name: numpy_helper.to_array(c).shape for c in builder.constants}
    assert shapes == {scalar: (), vector: (1,)}


def test_four_bits_take_half_a_byte():
    builder = OnnxBuilder(21, [])
    values = np.array([[-7, 7, 0], [3, -1, 2]], np.int8)
    builder.packed(values, "int4", "weight")
    (constant,) = builder.constants
    assert constant.data_type == onnx.TensorProto.INT4
    assert constant.ByteSize() < 30
    np.testing.assert_array_equal(numpy_helper.to_array(constant).astype(np.int8), values)


def test_what_no_output_needs_is_left_out():
    builder = OnnxBuilder(21, ["x"])
    needed = builder.node("Add", ["x", builder.constant(np.float32(1), "one")], "needed")
    builder.node("Add", [needed, builder.constant(np.float32(2), "two")], "other")
    builder.keep_needed([needed])
    assert [node.name for node in builder.nodes] == ["needed"]
    assert [constant.name for constant in builder.constants] == ["one"]
