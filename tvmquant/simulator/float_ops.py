"""Float operators, for the values that the audit reports as not integer.

They follow the formulas of Relax in float32; a library's exp, tanh or order of summation may differ
in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tvmquant.arithmetic import Array
from tvmquant.simulator.calls import OpCall, Operator


def _elementwise(function: Callable[..., Any]) -> Operator:
    def apply(call: OpCall) -> Array:
        dtype = np.result_type(*(x for x in call.args if isinstance(x, np.ndarray)))
        return np.asarray(function(*call.args)).astype(dtype, copy=False)

    return apply


def _reduction(function: Callable[..., Any]) -> Operator:
    def apply(call: OpCall) -> Array:
        axis = call.attrs["axis"]
        axes = None if axis is None else tuple(axis)
        result: Array = function(call.args[0], axis=axes, keepdims=call.attrs["keepdims"])
        return result.astype(call.args[0].dtype, copy=False)

    return apply


_erf_of_floats = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x: Array) -> Array:
    result: Array = _erf_of_floats(x).astype(x.dtype)
    return result


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the limit 0
        result: Array = 1 / (1 + np.exp(-x))
    return result


def _gelu(x: Array) -> Array:
    result: Array = x * (1 + _erf(x * np.float32(math.sqrt(0.5)))) / 2
    return result


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    result: Array = x * (1 + np.tanh(inner)) / 2
    return result


def softmax(call: OpCall) -> Array:
    """Exponentials divided by their sum, shifted by the maximum."""
    x, axis = call.args[0], call.attrs["axis"]
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    result: Array = powers / powers.sum(axis=axis, keepdims=True)
    return result


def log_softmax(call: OpCall) -> Array:
    """Logarithm of `softmax`, without computing it."""
    x, axis = call.args[0], call.attrs["axis"]
    shifted = x - x.max(axis=axis, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return result


def batch_norm(call: OpCall) -> tuple[Array, Array, Array]:
    """Normalize channels (axis 1) by given statistics, then scale and shift."""
    x, gamma, beta, mean, variance = call.args
    deviation = np.sqrt(variance + x.dtype.type(call.attrs["epsilon"]))
    scale, shift = _along(gamma / deviation, x, call), _along(beta, x, call)
    result: Array = (x - _along(mean, x, call)) * scale + shift
    return result, mean, variance


def layer_norm(call: OpCall) -> Array:
    """Normalize over ``axes``, then scale and shift; variance without correction."""
    x, gamma, beta = call.args
    axes = tuple(axis % x.ndim for axis in call.attrs["axes"])
    shape = [extent if i in axes else 1 for i, extent in enumerate(x.shape)]
    centered = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centered).mean(axis=axes, keepdims=True)
    scaled = centered / np.sqrt(variance + x.dtype.type(call.attrs["epsilon"]))
    result: Array = scaled * gamma.reshape(shape) + beta.reshape(shape)
    return result


def group_norm(call: OpCall) -> Array:
    """Normalize groups of channels (axis 1) and all positions, then scale and shift channels."""
    x, gamma, beta = call.args
    rows = x.reshape(len(x), call.attrs["num_groups"], -1)
    centered = rows - rows.mean(axis=2, keepdims=True)
    variance = np.square(centered).mean(axis=2, keepdims=True)
    normal = centered / np.sqrt(variance + x.dtype.type(call.attrs["epsilon"]))
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    result: Array = normal.reshape(x.shape) * gamma.reshape(shape) + beta.reshape(shape)
    return result


def leaky_relu(call: OpCall) -> Array:
    """Scale negative values by ``alpha``."""
    x: Array = call.args[0]
    return np.where(x > 0, x, x * x.dtype.type(call.attrs["alpha"]))


def prelu(call: OpCall) -> Array:
    """Scale negative values by a slope of their own for each channel."""
    x, slope = call.args
    scaled: Array = x * _along(slope, x, call)
    return np.where(x > 0, x, scaled)


def _along(values: Array, x: Array, call: OpCall) -> Array:
    """Shape one number, or one per channel, so that it broadcasts along ``axis``."""
    shape = [1] * x.ndim
    if values.size > 1:
        shape[call.attrs["axis"]] = -1
    return values.reshape(shape)


def matmul(call: OpCall) -> Array:
    """Matrix product with broadcast leading axes."""
    result: Array = np.matmul(call.args[0], call.args[1])
    return result.astype(call.attrs["out_dtype"] or result.dtype, copy=False)


def astype(call: OpCall) -> Array:
    """Convert to another type."""
    result: Array = call.args[0].astype(str(call.attrs["dtype"]))
    return result


def _comparison(function: Callable[..., Any]) -> Operator:
    return lambda call: np.asarray(function(*call.args), bool)


FLOAT_OPS: dict[str, Operator] = {
    "relax.equal": _comparison(np.equal),
    "relax.greater": _comparison(np.greater),
    "relax.greater_equal": _comparison(np.greater_equal),
    "relax.less": _comparison(np.less),
    "relax.less_equal": _comparison(np.less_equal),
    "relax.logical_and": _comparison(np.logical_and),
    "relax.logical_or": _comparison(np.logical_or),
    "relax.logical_xor": _comparison(np.logical_xor),
    "relax.logical_not": _comparison(np.logical_not),
    "relax.where": lambda call: np.where(*call.args),
    "relax.acos": _elementwise(np.arccos),
    "relax.acosh": _elementwise(np.arccosh),
    "relax.asin": _elementwise(np.arcsin),
    "relax.asinh": _elementwise(np.arcsinh),
    "relax.atan": _elementwise(np.arctan),
    "relax.atanh": _elementwise(np.arctanh),
    "relax.cosh": _elementwise(np.cosh),
    "relax.sinh": _elementwise(np.sinh),
    "relax.tan": _elementwise(np.tan),
    "relax.trunc": _elementwise(np.trunc),
    "relax.square": _elementwise(np.square),
    "relax.add": _elementwise(np.add),
    "relax.subtract": _elementwise(np.subtract),
    "relax.multiply": _elementwise(np.multiply),
    "relax.divide": _elementwise(np.divide),
    "relax.power": _elementwise(np.power),
    "relax.floor_mod": _elementwise(np.mod),
    "relax.maximum": _elementwise(np.maximum),
    "relax.minimum": _elementwise(np.minimum),
    "relax.clip": _elementwise(np.clip),
    "relax.negative": _elementwise(np.negative),
    "relax.abs": _elementwise(np.abs),
    "relax.exp": _elementwise(np.exp),
    "relax.log": _elementwise(np.log),
    "relax.sqrt": _elementwise(np.sqrt),
    "relax.rsqrt": _elementwise(lambda x: 1 / np.sqrt(x)),
    "relax.sin": _elementwise(np.sin),
    "relax.cos": _elementwise(np.cos),
    "relax.sign": _elementwise(np.sign),
    "relax.floor": _elementwise(np.floor),
    "relax.ceil": _elementwise(np.ceil),
    "relax.round": _elementwise(np.rint),
    "relax.tanh": _elementwise(np.tanh),
    "relax.erf": _elementwise(_erf),
    "relax.sigmoid": _elementwise(_sigmoid),
    "relax.nn.relu": _elementwise(lambda x: np.maximum(x, 0)),
    "relax.nn.silu": _elementwise(lambda x: x * _sigmoid(x)),
    "relax.nn.gelu": _elementwise(_gelu),
    "relax.nn.gelu_tanh": _elementwise(_gelu_tanh),
    "relax.nn.leakyrelu": leaky_relu,
    "relax.nn.prelu": prelu,
    "relax.nn.softmax": softmax,
    "relax.nn.log_softmax": log_softmax,
    "relax.nn.batch_norm": batch_norm,
    "relax.nn.layer_norm": layer_norm,
    "relax.nn.group_norm": group_norm,
    "relax.matmul": matmul,
    "relax.astype": astype,
    "relax.mean": _reduction(np.mean),
    "relax.sum": _reduction(np.sum),
    "relax.prod": _reduction(np.prod),
    "relax.isnan": _comparison(np.isnan),
    "relax.isinf": _comparison(np.isinf),
}
