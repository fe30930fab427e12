import numpy as np
import pytest
from tvm import relax, tirx
from tvm.ir import SourceName, Span

from tvmquant.ir import quantized_ops as qop

N = tirx.Var("n", "int64")
WINDOW = {"strides": [2, 2], "padding": [1, 1, 1, 1], "dilation": [1, 1], "out_dtype": "int32"}


def tensor(*shape, dtype="uint8"):
    return relax.Var("x", relax.TensorType(list(shape), dtype))


def zeros(*shape):
    return qop.constant(np.zeros(shape, np.int8))


@pytest.mark.parametrize(
    "array",
    [
        np.array([2**40 + 5]),
        np.array([0.1]),
        np.float32(3),
        np.arange(6, dtype=np.uint8).reshape(2, 3).T,
    ],
)
def test_constants_keep_shape_dtype_and_values(array):
    found = qop.constant_array(qop.constant(array))
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(found, array)


def test_other_expressions_are_no_constants():
    assert qop.constant_array(tensor(1)) is None


def test_attributes_come_back_as_they_went_in():
    attrs = {"scale": 0.1, "zero_point": -3, "strides": [1, 2], "id": "a/b", "out_dtype": "uint8"}
    call = qop.emit(qop.QUANTIZE, [tensor(N, 4, dtype="float32")], attrs)
    found = qop.attributes(call)
    assert found == attrs
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in attrs.items()}


def test_spans_stay_with_the_call():
    span = Span(SourceName("conv1"), 1, 1, 1, 1)
    call = qop.emit(qop.TABLE, [tensor(N, 4), zeros(256)], {"id": "t"}, span)
    assert call.span.source_name.name == "conv1"


def test_is_call():
    call = qop.emit(qop.TABLE, [tensor(N, 4), zeros(256)], {"id": "t"})
    assert qop.is_call(call, qop.QUANTIZE, qop.TABLE)
    assert not qop.is_call(call, qop.QUANTIZE)
    assert not qop.is_call(tensor(1), qop.TABLE)


CONV = WINDOW | {"groups": 1}
DECONV = CONV | {"output_padding": [1, 0]}
POOL = WINDOW | {"pool_size": [3, 2]}


@pytest.mark.parametrize(
    ("name", "args", "attrs", "shape"),
    [
        (qop.QCONV2D, [tensor(N, 3, 9, 8), zeros(5, 3, 3, 2)], CONV, [N, 5, 5, 5]),
        (qop.QCONV2D_TRANSPOSE, [tensor(N, 3, 9, 8), zeros(5, 3, 3, 2)], DECONV, [N, 5, 18, 14]),
        (qop.POOL_SUM, [tensor(N, 3, 9, 8)], POOL, [N, 3, 5, 5]),
    ],
)
def test_windowed_types_in_both_layouts(name, args, attrs, shape):
    nchw = infer(name, args, attrs | {"layout": "NCHW"})
    assert_type(nchw, shape, "int32")
    x, *weight = args
    extents = list(x.ty.shape.values)
    last = [tensor(*(extents[i] for i in (0, 2, 3, 1)))]
    last += [qop.constant(qop.constant_array(w).transpose(0, 2, 3, 1)) for w in weight]
    nhwc = infer(name, last, attrs | {"layout": "NHWC"})
    assert_type(nhwc, [shape[i] for i in (0, 2, 3, 1)], "int32")


@pytest.mark.parametrize(
    ("name", "args", "attrs", "shape", "dtype"),
    [
        (qop.FAKE_QUANT, [tensor(N, 4, dtype="float32")], {}, [N, 4], "float32"),
        (qop.QUANTIZE, [tensor(N, 4, dtype="float32")], {"out_dtype": "uint8"}, [N, 4], "uint8"),
        (qop.DEQUANTIZE, [tensor(N, 4), zeros(1)], {}, [N, 4], "float32"),
        (qop.QDENSE, [tensor(N, 2, 4), zeros(7, 4)], {"out_dtype": "int32"}, [N, 2, 7], "int32"),
        (
            qop.QMULTIPLY,
            [tensor(N, 4, 1, 1), tensor(N, 4, 5, 6)],
            {"out_dtype": "int32"},
            [N, 4, 5, 6],
            "int32",
        ),
        (qop.QMULTIPLY, [tensor(5), tensor(N, 4, 5)], {"out_dtype": "int32"}, [N, 4, 5], "int32"),
        (qop.TABLE, [tensor(N, 4), zeros(256)], {}, [N, 4], "int8"),
        (
            qop.REQUANTIZE,
            [tensor(N, 4, 1), *[zeros(1)] * 3, tensor(N, 4, 6), zeros(1)],
            {"out_dtype": "uint8"},
            [N, 4, 6],
            "uint8",
        ),
    ],
)
def test_pointwise_types(name, args, attrs, shape, dtype):
    assert_type(infer(name, args, attrs), shape, dtype)


def infer(name, args, attrs):
    return relax.BlockBuilder().normalize(qop.emit(name, args, attrs | {"id": "layer"})).ty


def assert_type(found, shape, dtype):
    assert str(found.dtype.dtype) == dtype
    extents = list(found.shape.values)
    assert len(extents) == len(shape)
    for extent, expected in zip(extents, shape, strict=True):
        assert extent.same_as(N) if expected is N else int(extent) == expected
