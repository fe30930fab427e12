import numpy as np
import pytest
from tvm import relax, tirx

from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop

N = tirx.Var("n", "int64")
IMAGE = (N, 3, 8, 6)


def typed(name, *args, **attrs):
    """Return shape and type of what an operator gives."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(list(a), dtype)) for i, (a, dtype) in
              enumerate(args)]  # fmt: skip
    with builder.function("main", params):
        result = builder.emit(qop.emit(name, params, {"id": "a", **attrs}))
        builder.emit_func_output(result)
    extents = [v if isinstance(v, relax.Var) else int(v) for v in result.ty.shape.values]
    return ["n" if isinstance(v, relax.Var) else v for v in extents], str(result.ty.dtype.dtype)


def test_ranges_are_two_numbers():
    assert typed(dyn.DYNAMIC_RANGE, (IMAGE, "float32")) == ([2], "float32")


@pytest.mark.parametrize(
    ("layout", "expected"), [("NCHW", ["n", 3, 12, 12]), ("NHWC", ["n", 7, 14, 6])]
)
def test_padding_belongs_to_the_spatial_axes(layout, expected):
    args = [(IMAGE, "float32"), ((2,), "float32")]
    found = typed(dyn.DYNAMIC_QUANTIZE, *args, padding=[1, 2, 3, 4], layout=layout)
    assert found == (expected, "uint8")


def test_what_is_not_padded_may_have_any_rank():
    args = [((N, 5), "float32"), ((2,), "float32")]
    found = typed(dyn.DYNAMIC_QUANTIZE, *args, padding=[0, 0, 0, 0], layout="")
    assert found == (["n", 5], "uint8")


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_real_numbers_have_the_shape_of_the_sums(dtype):
    args = [(IMAGE, dtype), ((2,), "float32"), ((1, 3, 1, 1), "int32")]
    args += [((3,), "float32"), ((1,), "float32")]
    found = typed(dyn.DYNAMIC_DEQUANTIZE, *args, axis=1, layout="NCHW", low=-np.inf, high=np.inf)
    assert found == (["n", 3, 8, 6], "float32")


def test_infinite_bounds_come_back_as_they_went_in():
    attrs = {"low": -np.inf, "high": np.inf, "axis": -1}
    assert qop.attributes(qop.emit(dyn.DYNAMIC_DEQUANTIZE, [], attrs)) == attrs
