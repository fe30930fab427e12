"""Shape and type of an input of a node, whatever kind of value it is."""

from __future__ import annotations

import numpy as np
import onnx

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Batch, Shape, UnsupportedNodeError, is_symbolic, show
from tvmquant.frontend.float_types import as_float32
from tvmquant.frontend.quantized_tensor import QuantizedTensor
from tvmquant.frontend.ranged_tensor import RangedTensor, RangeParameter


def shape_of(ctx: Context, index: int) -> Shape:
    """Return the shape of an input.

    Raises
    ------
    UnsupportedNodeError
        If it is left out.
    """
    value = ctx.value(index)
    if value is None:
        raise UnsupportedNodeError(f"input {index} is missing")
    if isinstance(value, np.ndarray):
        return value.shape
    if isinstance(value, RangeParameter):
        return ()
    return ctx.shape(value.real if isinstance(value, QuantizedTensor | RangedTensor) else value)


def type_of(ctx: Context, index: int) -> onnx.TypeProto:
    """Return the type of an input in ONNX's terms, empty if it is left out.

    Dimensions that depend on the batch are named, floating-point numbers of any width float32.
    """
    value = ctx.value(index)
    if value is None:
        return onnx.TypeProto()
    if isinstance(value, np.ndarray):
        dtype = "int64" if is_symbolic(value) else as_float32(value).dtype.name
    elif isinstance(value, QuantizedTensor | RangedTensor | RangeParameter):
        dtype = value.dtype
    else:
        dtype = str(value.ty.dtype)
    shape = [show((dim,)) if isinstance(dim, Batch) else dim for dim in shape_of(ctx, index)]
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_type_proto(element, shape)
