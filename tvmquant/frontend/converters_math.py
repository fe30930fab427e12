"""Arithmetic, clips and softmax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context, Value
from tvmquant.frontend.converters_quantize import clipped
from tvmquant.frontend.dimensions import (
    UnsupportedNodeError,
    broadcast_shapes,
    count,
    is_symbolic,
)
from tvmquant.frontend.float_types import as_float32
from tvmquant.frontend.node import Node
from tvmquant.frontend.quantized_tensor import QuantizedTensor
from tvmquant.frontend.registry import converter

INFINITY = float("inf")


def _scalar(value: float) -> relax.Expr:
    return relax.const(np.float32(value), "float32")


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": relax.op.abs,
    "Acos": relax.op.acos,
    "Acosh": relax.op.acosh,
    "Asin": relax.op.asin,
    "Asinh": relax.op.asinh,
    "Atan": relax.op.atan,
    "Atanh": relax.op.atanh,
    "Ceil": relax.op.ceil,
    "Cos": relax.op.cos,
    "Cosh": relax.op.cosh,
    "Erf": relax.op.erf,
    "Exp": relax.op.exp,
    "Floor": relax.op.floor,
    "Log": relax.op.log,
    "Neg": relax.op.negative,
    "Relu": relax.op.nn.relu,
    "Round": relax.op.round,
    "Sigmoid": relax.op.sigmoid,
    "Sign": relax.op.sign,
    "Sin": relax.op.sin,
    "Sinh": relax.op.sinh,
    "Sqrt": relax.op.sqrt,
    "Tan": relax.op.tan,
    "Tanh": relax.op.tanh,
}


@converter(*_UNARY)
def _convert_unary(ctx: Context, node: Node) -> relax.Var:
    return ctx.emit(_UNARY[node.op_type](ctx.tensor(0)))


@converter("Reciprocal")
def _convert_reciprocal(ctx: Context, node: Node) -> relax.Var:
    return ctx.emit(relax.op.divide(_scalar(1.0), ctx.tensor(0)))


_BINARY: dict[str, Callable[..., Any]] = {
    "Add": relax.op.add,
    "Div": relax.op.divide,
    "Max": relax.op.maximum,
    "Mean": relax.op.add,
    "Min": relax.op.minimum,
    "Mul": relax.op.multiply,
    "Pow": relax.op.power,
    "Sub": relax.op.subtract,
    "Sum": relax.op.add,
}
# Scalar operands that change nothing.
_NEUTRAL = {"Max": -math.inf, "Min": math.inf}
# What means the same in every width of integers; those of 8 bits would wrap around.
_OF_INTEGERS = ("Add", "Max", "Min", "Mul", "Sub")
_INTEGERS = {"int32", "int64"}


@converter(*_BINARY)
def _convert_binary(ctx: Context, node: Node) -> relax.Expr:
    if node.op_type == "Add":
        for data, constant in ((0, 1), (1, 0)):
            if ctx.is_constant(constant) and not ctx.is_constant(data):
                found = _add_constant(ctx, data, constant)
                if found is not None:
                    return found
    counted = [
        i for i in range(len(node.inputs)) if not _is_scalar(ctx, i, _NEUTRAL.get(node.op_type))
    ]
    operands = [_operand(ctx, index) for index in counted]
    broadcast_shapes(*(ctx.shape(operand) for operand in operands))
    types = {str(operand.ty.dtype) for operand in operands}
    exact = node.op_type in _OF_INTEGERS and len(types) == 1 and types <= _INTEGERS
    if types != {"float32"} and not exact:
        also = " or, all alike, int32 or int64" if node.op_type in _OF_INTEGERS else ""
        raise UnsupportedNodeError(
            f"its operands have types {', '.join(sorted(types))}, expected float32{also}; cast "
            "them before"
        )
    for exponent in (2, 3, 4):
        if node.op_type == "Pow" and _is_scalar(ctx, 1, exponent):
            factors = [operands[0]] * exponent
            return functools.reduce(lambda a, b: ctx.emit(relax.op.multiply(a, b)), factors)
    if node.op_type == "Pow" and _is_scalar(ctx, 1, 0.5):
        return ctx.emit(relax.op.sqrt(operands[0]))
    result = operands[0]
    for operand in operands[1:]:
        result = ctx.emit(_BINARY[node.op_type](result, operand))
    if node.op_type == "Mean" and len(operands) > 1:
        return ctx.emit(relax.op.multiply(result, _scalar(1.0 / len(operands))))
    return result


def _add_constant(ctx: Context, index: int, constant: int) -> relax.Expr | None:
    """Add zeros or a mask of -inf; None where the constant is neither.

    What a mask hides is chosen, not added: no calibration could hold a sum of infinities. A bias of
    -inf is no mask.
    """
    value, data = ctx.value(constant), ctx.tensor(index)
    if not isinstance(value, np.ndarray) or is_symbolic(value) or not _is_float(data):
        return None
    array = as_float32(value)
    if array.dtype != np.float32:
        return None
    hidden = np.isneginf(array)
    shown = np.where(hidden, np.float32(0), array)
    if not np.isfinite(shown).all() or (hidden.any() and array.ndim < 2):
        return None
    if hidden.any():
        if shown.any():
            data = ctx.emit(relax.op.add(data, ctx.embed(shown)))
        return ctx.emit(relax.op.where(ctx.embed(hidden), _scalar(-INFINITY), data))
    same = broadcast_shapes(ctx.shape(data), array.shape) == ctx.shape(data)
    return data if same and not shown.any() else None


def _is_float(tensor: relax.Expr) -> bool:
    return str(tensor.ty.dtype) == "float32"


def _operand(ctx: Context, index: int) -> relax.Expr:
    """Return an input; Pow takes exponents of any type."""
    if ctx.node.op_type == "Pow" and index == 1 and ctx.is_constant(1):
        return ctx.embed(ctx.weight(1).astype(np.float32))
    tensor = ctx.tensor(index)
    if ctx.node.op_type == "Pow" and index == 1 and str(tensor.ty.dtype) != "float32":
        return ctx.emit(relax.op.astype(tensor, "float32"))
    return tensor


def _is_scalar(ctx: Context, index: int, value: float | None) -> bool:
    array = ctx.value(index)
    return (
        value is not None
        and isinstance(array, np.ndarray)
        and array.size == 1
        and float(array.item()) == value
    )


def clip(ctx: Context, data: relax.Expr, low: float, high: float) -> relax.Var:
    """Emit a clip; one from 0 upwards is a ReLU."""
    if low == 0.0 and high == INFINITY:
        return ctx.emit(relax.op.nn.relu(data))
    return ctx.emit(relax.op.clip(data, low, high))


@converter("Clip")
def _convert_clip(ctx: Context, node: Node) -> relax.Var | QuantizedTensor:
    quantized = ctx.value(0)
    if isinstance(quantized, QuantizedTensor):
        return clipped(ctx, quantized, *_limits(ctx, node))
    data = ctx.tensor(0)
    limits = [ctx.value(1), ctx.value(2)]
    if any(limit is not None and not isinstance(limit, np.ndarray) for limit in limits):
        result = data
        if limits[0] is not None and not _is_everywhere(limits[0], -INFINITY):
            result = ctx.emit(relax.op.maximum(result, ctx.tensor(1)))
        if limits[1] is not None and not _is_everywhere(limits[1], INFINITY):
            result = ctx.emit(relax.op.minimum(result, ctx.tensor(2)))
        return result
    low, high = _limits(ctx, node)
    if (low, high) == (-INFINITY, INFINITY):
        return data
    return clip(ctx, data, low, high)


def _limits(ctx: Context, node: Node) -> tuple[float, float]:
    """Return the constant limits of a clip; infinite where there are none."""
    low = _limit(ctx, 1, node.number("min", -INFINITY))
    high = _limit(ctx, 2, node.number("max", INFINITY))
    if low > high:
        raise UnsupportedNodeError(f"its limits are {low} and {high}, the first is the greater")
    return low, high


def _is_everywhere(value: Value, number: float) -> bool:
    return isinstance(value, np.ndarray) and bool(np.all(value == number))


def _limit(ctx: Context, index: int, default: float) -> float:
    array = ctx.optional_constant(index)
    if array is None:
        value = default
    elif array.size != 1 or np.isnan(array).any():
        raise UnsupportedNodeError(f"its limit has shape {array.shape} or is NaN")
    else:
        value = float(array.item())
    # exporters write "no limit" as the largest float32
    largest = float(np.finfo(np.float32).max)
    return value if abs(value) < largest else float(np.copysign(INFINITY, value))


@converter("Softmax", "LogSoftmax")
def _convert_softmax(ctx: Context, node: Node) -> relax.Var:
    """Emit a softmax; up to opset 12 it runs over all axes from ``axis`` on."""
    function = relax.op.nn.softmax if node.op_type == "Softmax" else relax.op.nn.log_softmax
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), node.integer("axis", -1 if node.opset >= 13 else 1))
    ctx.keep_batch(shape, [axis])
    if node.opset >= 13 or count(shape[axis + 1 :]) == 1:
        return ctx.emit(function(data, axis))
    rows = ctx.reshape(data, (count(shape[:axis]), count(shape[axis:])))
    return ctx.reshape(ctx.emit(function(rows, 1)), shape)
