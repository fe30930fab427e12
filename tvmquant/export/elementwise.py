"""Functions of each number by itself, comparisons and choices."""

from __future__ import annotations

import math

import numpy as np

from tvmquant.export.call_writer import CallWriter, Writer
from tvmquant.passes.elementwise import scalar_bound

# The first opset with the operator Gelu.
GELU_OPSET = 20


def plain(operator: str) -> Writer:
    """Write a call as one node of its operands without attributes."""
    return lambda writer: writer.node(operator, writer.tensors())


def _square(writer: CallWriter) -> str:
    x = writer.tensor(0)
    return writer.node("Mul", [x, x])


def _rsqrt(writer: CallWriter) -> str:
    return writer.node("Reciprocal", [writer.node("Sqrt", [writer.tensor(0)])])


def _trunc(writer: CallWriter) -> str:
    x = writer.tensor(0)
    whole = writer.node("Floor", [writer.node("Abs", [x])])
    return writer.node("Mul", [writer.node("Sign", [x]), whole])


def _clip(writer: CallWriter) -> str:
    ends = [scalar_bound(writer.call.args[i]) for i in (1, 2)]
    names = [writer.number(end) if math.isfinite(end) else "" for end in ends]
    return writer.node("Clip", [writer.tensor(0), *names])


def _leaky_relu(writer: CallWriter) -> str:
    return writer.node("LeakyRelu", [writer.tensor(0)], alpha=float(writer.attrs.alpha))


def _prelu(writer: CallWriter) -> str:
    rank, axis, slope = writer.rank, int(writer.attrs.axis), writer.array(1)
    shape = [-1 if i == axis % rank else 1 for i in range(rank)]
    if slope is not None:
        name = writer.constant(slope.reshape(shape), "slope")
    else:
        name = writer.node("Reshape", [writer.tensor(1), writer.integers(shape, "shape")])
    return writer.node("PRelu", [writer.tensor(0), name])


def _silu(writer: CallWriter) -> str:
    x = writer.tensor(0)
    return writer.node("Mul", [x, writer.node("Sigmoid", [x])])


def _gelu(writer: CallWriter) -> str:
    x = writer.tensor(0)
    if writer.opset >= GELU_OPSET:
        return writer.node("Gelu", [x])
    inner = writer.node("Mul", [x, writer.number(math.sqrt(0.5))])
    return _half_of_one_plus(writer, x, writer.node("Erf", [inner]))


def _gelu_tanh(writer: CallWriter) -> str:
    """Write ``x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) / 2``."""
    x = writer.tensor(0)
    if writer.opset >= GELU_OPSET:
        return writer.node("Gelu", [x], approximate="tanh")
    cube = writer.node("Mul", [x, writer.node("Mul", [x, x])])
    inner = writer.node("Add", [x, writer.node("Mul", [cube, writer.number(0.044715)])])
    scaled = writer.node("Mul", [inner, writer.number(math.sqrt(2.0 / math.pi))])
    return _half_of_one_plus(writer, x, writer.node("Tanh", [scaled]))


def _half_of_one_plus(writer: CallWriter, x: str, part: str) -> str:
    total = writer.node("Add", [part, writer.number(1.0)])
    return writer.node("Mul", [writer.node("Mul", [x, total]), writer.number(0.5)])


def _astype(writer: CallWriter) -> str:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(writer.attrs.dtype)))
    return writer.node("Cast", [writer.tensor(0)], to=kind)


# Relax's names of operators that ONNX has too, in any order of operands that both share
_PLAIN = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "power": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "abs": "Abs",
    "negative": "Neg",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "tanh": "Tanh",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "sign": "Sign",
    "isnan": "IsNaN",
    "isinf": "IsInf",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sigmoid": "Sigmoid",
    "nn.relu": "Relu",
    "equal": "Equal",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "logical_not": "Not",
    "where": "Where",
}

ELEMENTWISE: dict[str, Writer] = {
    **{f"relax.{ours}": plain(theirs) for ours, theirs in _PLAIN.items()},
    "relax.square": _square,
    "relax.rsqrt": _rsqrt,
    "relax.trunc": _trunc,
    "relax.clip": _clip,
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.prelu": _prelu,
    "relax.nn.silu": _silu,
    "relax.nn.gelu": _gelu,
    "relax.nn.gelu_tanh": _gelu_tanh,
    "relax.astype": _astype,
}
