"""What operators do to tensors of integers: which move, which are linear, which axes they keep."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.elementwise import CAST

MOVERS = frozenset(
    {
        "relax.reshape",
        "relax.flatten",
        "relax.permute_dims",
        "relax.squeeze",
        "relax.expand_dims",
        "relax.strided_slice",
        "relax.concat",
        "relax.nn.max_pool2d",
        "relax.max",
        "relax.min",
        "relax.nn.pad",
        "relax.image.resize2d",
        "relax.take",
        "relax.tile",
        "relax.broadcast_to",
    }
)

# movers that hand their source on as it is: what becomes of it decides its width
RESHAPES = (
    "relax.reshape",
    "relax.flatten",
    "relax.permute_dims",
    "relax.squeeze",
    "relax.expand_dims",
)

# Types whose casts to float a fake_quant passes on unchanged: zero point, qmin and qmax.
EXACT_INPUTS = {"uint8": (0, 0, 255), "int8": (128, 0, 255), "bool": (0, 0, 1)}

# of two tensors, and of one along axes
EXTREMES = ("relax.maximum", "relax.minimum")
REDUCED_EXTREMES = ("relax.max", "relax.min")

# of a PRelu or leaky ReLU in integers
MAX_SLOPE = 16.0

# asked for by a reshape, for a purpose that only the reader of the reshape knows
UNDECIDED = "undecided"


def is_scalar(array: Any) -> bool:
    """Whether a constant holds one number."""
    return array is not None and array.size == 1


def is_mover(call: relax.Call) -> bool:
    """Whether a call only moves, picks the greatest of, or averages values of its inputs."""
    if not qop.is_call(call, *MOVERS):
        return False
    if qop.is_call(call, "relax.take"):  # which elements must be known
        return not isinstance(call.args[1], relax.Var)
    if qop.is_call(call, "relax.image.resize2d"):
        linear = str(call.attrs.method) == "linear"
        crops = str(call.attrs.coordinate_transformation_mode) == "tf_crop_and_resize"
        return (linear and not crops) or str(call.attrs.method) == "nearest_neighbor"
    return True


def input_axis(call: relax.Call) -> int:
    """Return the axis of a contraction's input channels."""
    return len(call.args[0].ty.shape.values) - 1 if qop.is_call(call, "relax.matmul") else 1


def output_axis(call: relax.Call) -> int:
    """Return the axis of a contraction's output channels."""
    return len(call.ty.shape.values) - 1 if qop.is_call(call, "relax.matmul") else 1


def along(values: Any, axis: int, rank: int) -> Any:
    """Shape (1,) or (C,) numbers so that they broadcast along an axis."""
    shape = [1] * rank
    if values.size > 1:
        shape[axis] = values.size
    return values.reshape(shape)


def varies_along(constant: Any, rank: int, axis: int | None) -> bool:
    """Whether a constant is a scalar, or varies along one axis (None: any but the batch) only."""
    if constant is None:
        return False
    if constant.size == 1:
        return True
    shape = (1,) * (rank - constant.ndim) + constant.shape
    fixed = [0] if axis is None else [i for i in range(rank) if i != axis]
    return len(shape) == rank and all(shape[i] == 1 for i in fixed)


def slopes_of(call: relax.Call) -> Any:
    """Return what a PRelu or a leaky ReLU multiplies negative values by, or None if not known."""
    if qop.is_call(call, "relax.nn.leakyrelu"):
        return np.full(1, float(call.attrs.alpha))
    return qop.constant_array(call.args[1])


def has_usable_slopes(call: relax.Call) -> bool:
    """Whether slopes are known, and not so steep that one shift fits no both sides."""
    slopes = slopes_of(call)
    return slopes is not None and bool(np.all(np.abs(slopes) <= MAX_SLOPE))


def keeps_shape(call: relax.Call, tensor: relax.Var) -> bool:
    """Whether an operation with a constant leaves the tensor's shape as it is."""
    return [str(d) for d in call.ty.shape.values] == [str(d) for d in tensor.ty.shape.values]


def is_input_cast(value: Any, parameters: list[relax.Var]) -> TypeGuard[relax.Call]:
    """Whether a value is an input of integers as float."""
    to_float = qop.is_call(value, CAST) and str(value.attrs.dtype) == "float32"
    return to_float and value.args[0] in parameters


def is_exact_cast(value: Any, parameters: list[relax.Var]) -> TypeGuard[relax.Call]:
    """Whether a value is an input of 8-bit integers as float, or a comparison of integers."""
    if not qop.is_call(value, CAST) or str(value.attrs.dtype) != "float32":
        return False
    operand = value.args[0]
    is_input = operand in parameters and str(operand.ty.dtype.dtype) in EXACT_INPUTS
    return is_input or is_boolean(operand)


def is_boolean(tensor: relax.Expr) -> bool:
    """Whether a value is a tensor of truth values."""
    return isinstance(tensor.ty, relax.TensorType) and str(tensor.ty.dtype.dtype) == "bool"


def is_linear(
    call: relax.Call, constant: Any, constant_first: bool, axis: int | None = None
) -> bool:
    """Whether a call adds or multiplies constants that vary along an axis (`varies_along`)."""
    if not varies_along(constant, len(call.ty.shape.values), axis):
        return False
    if qop.is_call(call, "relax.subtract", "relax.divide"):
        return not constant_first
    return qop.is_call(call, "relax.add", "relax.multiply")


def is_window_mean(call: relax.Call) -> bool:
    """Whether a call averages over windows of the two spatial axes, or over one or both whole."""
    if not qop.is_call(call, "relax.mean"):
        return str(call.attrs.layout) == "NCHW"
    rank = len(call.args[0].ty.shape.values)
    axes = sorted(int(a) % rank for a in (call.attrs.axis or range(rank)))
    return rank == 4 and axes in ([2], [3], [2, 3]) and bool(call.attrs.keepdims)


def is_repeated_constant(value: Any) -> TypeGuard[relax.Call]:
    """Whether a value is a constant, written as a tensor."""
    return qop.is_call(value, "relax.broadcast_to") and isinstance(
        value.args[0], tvm.ir.GenericConst
    )


def is_embedding(value: Any) -> TypeGuard[relax.Call]:
    """Whether a value is rows of a constant table, which ones the data say."""
    return qop.is_call(value, "relax.take") and isinstance(value.args[0], tvm.ir.GenericConst)
