"""Elementwise operators and activations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from tvm import relax

from tvmquant.frontend.context import Context, Value
from tvmquant.frontend.converters_quantize import clipped
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError, broadcast_shapes, count
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
def _convert_binary(ctx: Context, node: Node) -> relax.Var:
    counted = [
        i for i in range(len(node.inputs)) if not _is_scalar(ctx, i, _NEUTRAL.get(node.op_type))
    ]
    operands = [_operand(ctx, index) for index in counted]
    broadcast_shapes(*(ctx.shape(operand) for operand in operands))
    types = {str(operand.ty.dtype) for operand in operands}
    exact = node.op_type in _OF_INTEGERS and len(types) == 1 and types <= _INTEGERS
    if types != {"float32"} and not exact:
        raise UnsupportedNodeError(f"its operands have types {', '.join(sorted(types))}")
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


def _operand(ctx: Context, index: int) -> relax.Expr:
    """Return an input; Pow takes constant exponents of any type."""
    if ctx.node.op_type == "Pow" and index == 1 and ctx.is_constant(1):
        return ctx.embed(ctx.weight(1).astype(np.float32))
    return ctx.tensor(index)


def _is_scalar(ctx: Context, index: int, value: float | None) -> bool:
    array = ctx.value(index)
    return (
        value is not None
        and isinstance(array, np.ndarray)
        and array.size == 1
        and float(array.item()) == value
    )


def _clip(ctx: Context, data: relax.Expr, low: float, high: float) -> relax.Var:
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
    return _clip(ctx, data, low, high)


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


@converter("LeakyRelu")
def _convert_leaky_relu(ctx: Context, node: Node) -> relax.Var:
    return ctx.emit(relax.op.nn.leakyrelu(ctx.tensor(0), node.number("alpha", 0.01)))


def _hard_sigmoid(ctx: Context, data: relax.Expr, alpha: float, beta: float) -> relax.Var:
    sloped = ctx.emit(relax.op.multiply(data, _scalar(alpha)))
    shifted = ctx.emit(relax.op.add(sloped, _scalar(beta)))
    return _clip(ctx, shifted, 0.0, 1.0)


@converter("HardSigmoid")
def _convert_hard_sigmoid(ctx: Context, node: Node) -> relax.Var:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return _hard_sigmoid(ctx, ctx.tensor(0), alpha, beta)


@converter("HardSwish")
def _convert_hard_swish(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    gate = _hard_sigmoid(ctx, data, 1.0 / 6.0, 0.5)
    return ctx.emit(relax.op.multiply(data, gate))


@converter("Gelu")
def _convert_gelu(ctx: Context, node: Node) -> relax.Var:
    if node.text("approximate", "none") == "tanh":
        return ctx.emit(relax.op.nn.gelu_tanh(ctx.tensor(0)))
    return ctx.emit(relax.op.nn.gelu(ctx.tensor(0)))


@converter("Swish")
def _convert_swish(ctx: Context, node: Node) -> relax.Var:
    data, alpha = ctx.tensor(0), node.number("alpha", 1.0)
    if alpha == 1.0:
        return ctx.emit(relax.op.nn.silu(data))
    scaled = ctx.emit(relax.op.multiply(data, _scalar(alpha)))
    return ctx.emit(relax.op.multiply(data, ctx.emit(relax.op.sigmoid(scaled))))


def _softplus(ctx: Context, data: relax.Expr) -> relax.Var:
    """Emit ``max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    magnitude = ctx.emit(relax.op.abs(data))
    power = ctx.emit(relax.op.exp(ctx.emit(relax.op.negative(magnitude))))
    tail = ctx.emit(relax.op.log(ctx.emit(relax.op.add(power, _scalar(1.0)))))
    return ctx.emit(relax.op.add(ctx.emit(relax.op.nn.relu(data)), tail))


@converter("Softplus")
def _convert_softplus(ctx: Context, node: Node) -> relax.Var:
    return _softplus(ctx, ctx.tensor(0))


@converter("Mish")
def _convert_mish(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    gate = ctx.emit(relax.op.tanh(_softplus(ctx, data)))
    return ctx.emit(relax.op.multiply(data, gate))


@converter("Softsign")
def _convert_softsign(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    magnitude = ctx.emit(relax.op.abs(data))
    return ctx.emit(relax.op.divide(data, ctx.emit(relax.op.add(magnitude, _scalar(1.0)))))


@converter("Elu", "Selu", "Celu")
def _convert_elu(ctx: Context, node: Node) -> relax.Var:
    """Emit ``gamma * (relu(x) + alpha * (exp(min(x, 0) / beta) - 1))``."""
    alpha, beta, gamma = node.number("alpha", 1.0), 1.0, 1.0
    if node.op_type == "Selu":
        alpha = node.number("alpha", 1.6732632423543772)
        gamma = node.number("gamma", 1.0507009873554805)
    elif node.op_type == "Celu":
        beta = alpha
    data = ctx.tensor(0)
    negative = ctx.emit(relax.op.clip(data, -INFINITY, 0.0))
    if beta != 1.0:
        negative = ctx.emit(relax.op.multiply(negative, _scalar(1.0 / beta)))
    power = ctx.emit(relax.op.exp(negative))
    tail = ctx.emit(relax.op.multiply(ctx.emit(relax.op.add(power, _scalar(-1.0))), _scalar(alpha)))
    total = ctx.emit(relax.op.add(ctx.emit(relax.op.nn.relu(data)), tail))
    return total if gamma == 1.0 else ctx.emit(relax.op.multiply(total, _scalar(gamma)))


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


@converter("Cast")
def _convert_cast(ctx: Context, node: Node) -> relax.Expr:
    """Convert types; all floating-point types are float32 in the graph."""
    data = ctx.tensor(0)
    target = onnx.helper.tensor_dtype_to_np_dtype(node.integer("to", 1)).name
    dtype = (
        "float32" if target.startswith(("float16", "float32", "float64", "bfloat16")) else target
    )
    if dtype not in ("float32", "int8", "uint8", "int32", "int64", "bool"):
        raise UnsupportedNodeError(f"it casts to {target}")
    return data if str(data.ty.dtype) == dtype else ctx.emit(relax.op.astype(data, dtype))


@converter("CastLike")
def _convert_cast_like(ctx: Context, node: Node) -> relax.Expr:
    data, dtype = ctx.tensor(0), str(ctx.tensor(1).ty.dtype)
    return data if str(data.ty.dtype) == dtype else ctx.emit(relax.op.astype(data, dtype))


@converter("Identity", "Dropout")
def _convert_identity(ctx: Context, node: Node) -> Any:
    if node.op_type == "Dropout":
        training = ctx.optional_constant(2)
        if training is not None and bool(training.item()):
            raise UnsupportedNodeError("it is in training mode; export with model.eval()")
    value: Array | relax.Var | None = ctx.value(0)
    return value
