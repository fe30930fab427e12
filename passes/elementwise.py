"""Elementwise float operators as numpy functions: what a 256-entry lookup table can stand for.

A chain of these on one 8-bit tensor is a function of 256 values. It is evaluated here in float64
when the graph is compiled and becomes one table, exact by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

FloatArray = npt.NDArray[np.float64]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: FloatArray) -> FloatArray:
    return 1.0 / (1.0 + np.exp(-x))


def _gelu_tanh(x: FloatArray) -> FloatArray:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


UNARY: dict[str, Callable[[FloatArray], FloatArray]] = {
    "relax.nn.relu": lambda x: np.maximum(x, 0.0),
    "relax.nn.gelu": lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "relax.nn.gelu_tanh": _gelu_tanh,
    "relax.nn.silu": lambda x: x * _sigmoid(x),
    "relax.sigmoid": _sigmoid,
    "relax.tanh": np.tanh,
    "relax.exp": np.exp,
    "relax.log": np.log,
    "relax.sqrt": np.sqrt,
    "relax.rsqrt": lambda x: 1.0 / np.sqrt(x),
    "relax.erf": _erf,
    "relax.abs": np.abs,
    "relax.negative": np.negative,
    "relax.square": np.square,
    "relax.floor": np.floor,
    "relax.ceil": np.ceil,
    "relax.sin": np.sin,
    "relax.cos": np.cos,
    "relax.sign": np.sign,
    "relax.round": np.rint,
    "relax.trunc": np.trunc,
    "relax.tan": np.tan,
    "relax.sinh": np.sinh,
    "relax.cosh": np.cosh,
    "relax.asin": np.arcsin,
    "relax.acos": np.arccos,
    "relax.atan": np.arctan,
    "relax.asinh": np.arcsinh,
    "relax.acosh": np.arccosh,
    "relax.atanh": np.arctanh,
}

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.power": np.power,
}

# of truth values
LOGICAL: dict[str, Callable[..., Any]] = {
    "relax.equal": np.equal,
    "relax.greater": np.greater,
    "relax.greater_equal": np.greater_equal,
    "relax.less": np.less,
    "relax.less_equal": np.less_equal,
    "relax.logical_not": np.logical_not,
    "relax.logical_and": np.logical_and,
    "relax.logical_or": np.logical_or,
    "relax.logical_xor": np.logical_xor,
}

# of booleans a conversion is elementwise as well; of numbers it marks where a model changes types
CAST, SELECT = "relax.astype", "relax.where"
ELEMENTWISE = frozenset({*UNARY, *BINARY, *LOGICAL, "relax.clip", "relax.nn.leakyrelu", SELECT})


def scalar_bound(expr: Any) -> float:
    """Return the value of a clip bound (a Relax primitive value)."""
    value = getattr(expr, "value", expr)
    return float(getattr(value, "value", value))


def evaluate(call: relax.Call, operands: list[Any]) -> Any:
    """Apply one elementwise call to numpy operands.

    Parameters
    ----------
    call : relax.Call
        A call of one of `ELEMENTWISE`.
    operands : list
        float64 arrays or scalars for the tensor arguments, in order.
    """
    name = call.op.name
    with np.errstate(all="ignore"):
        if name in UNARY:
            return UNARY[name](operands[0])
        if name in BINARY:
            return BINARY[name](*operands)
        if name in LOGICAL:
            return LOGICAL[name](*operands)
        if name == SELECT:
            return np.where(np.asarray(operands[0], bool), *operands[1:])
        if name == CAST:
            return np.asarray(operands[0], np.float64)
        if name == "relax.clip":
            return np.clip(operands[0], scalar_bound(call.args[1]), scalar_bound(call.args[2]))
        return np.where(operands[0] > 0, operands[0], operands[0] * float(call.attrs.alpha))
