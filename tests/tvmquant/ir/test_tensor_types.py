import pytest
from tvm import relax, tirx

from tvmquant.ir.tensor_types import dtype_of, integers, nhwc_shape, static_shape


def variable(shape, dtype="uint8"):
    return relax.Var("x", relax.TensorType(shape, dtype))


def test_shapes_are_tuples_of_python_integers():
    x = variable((2, 5, 4, 3))
    assert static_shape(x) == nhwc_shape(x) == (2, 5, 4, 3)
    assert [type(extent) for extent in static_shape(x)] == [int] * 4
    assert static_shape(variable((7,))) == (7,)


def test_symbolic_extents_and_other_ranks_are_refused():
    with pytest.raises(TypeError):
        static_shape(variable((tirx.Var("n", "int64"), 3)))
    with pytest.raises(ValueError, match="unpack"):
        nhwc_shape(variable((2, 3)))


def test_element_type_is_empty_for_what_is_no_tensor():
    assert dtype_of(variable((2,), "int16")) == "int16"
    assert dtype_of(relax.Var("t", relax.TupleType([relax.TensorType((2,), "uint8")]))) == ""


def test_integers_of_an_attribute():
    call = relax.op.nn.max_pool2d(variable((1, 3, 8, 8), "float32"), (3, 2), (2, 1))
    assert integers(call.attrs.pool_size) == (3, 2)
    assert integers(call.attrs.strides) == (2, 1)
