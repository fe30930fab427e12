"""Checks of scales, zero points and integers of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from tvmquant.frontend.dialects.draft import Draft
from tvmquant.frontend.dimensions import Array
from tvmquant.frontend.node import Node

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

_QUANTIZED: tuple[str, ...] = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16")
_DEQUANTIZED = (*_QUANTIZED, "int32")
_AGAIN = "quantize the model again"


def scale_fault(scale: Array, name: str) -> str | None:
    """Return why scales cannot be used, None if they can.

    Parameters
    ----------
    scale : array of any type
    name : str
    """
    values = scale.astype(np.float64).reshape(-1)
    valid = np.isfinite(values) & (values > 0)
    if scale.size and valid.all():
        return None
    found = f"holds {values[~valid][0]:g}" if scale.size else "is empty"
    return f"its scale {name!r} {found}, expected finite numbers > 0; {_AGAIN}"


def parameter_fault(draft: Draft, node: Node) -> str | None:
    """Return why a quantizer cannot be imported, None if what is known of it is valid.

    Parameters
    ----------
    draft : Draft
        The model.
    node : Node
        QuantizeLinear or DequantizeLinear. How its scales fit the shape of its input is judged
        where that is constant; the import, which knows other shapes, judges the others.
    """
    if len(node.inputs) < 2:
        return None  # which ONNX's checker finds
    scale = draft.known.array(node.inputs[1])
    zero_point = draft.known.array(node.inputs[2]) if len(node.inputs) > 2 else None
    fault = _type_fault(draft, node, zero_point)
    if fault is None and scale is not None:
        fault = scale_fault(scale, node.inputs[1])
    if fault is None and scale is not None and zero_point is not None:
        fault = _zero_point_fault(node, scale, zero_point)
    if fault is None and scale is not None:
        data = draft.known.array(node.inputs[0])
        fault = _shape_fault(node, scale, data)
        if fault is None and data is not None and node.op_type == "DequantizeLinear":
            fault = _overflow(node, scale, data)
    return fault


def _type_fault(draft: Draft, node: Node, zero_point: Array | None) -> str | None:
    """Judge the integer type, as the tensor, its zero point and an attribute say it."""
    given = None if zero_point is None else zero_point.dtype
    if node.op_type == "DequantizeLinear":
        dtype, allowed = draft.type_of(node.inputs[0]), _DEQUANTIZED
        # constants of other types are numbers that the file stores, like any others
        if draft.known.array(node.inputs[0]) is not None and dtype == given:
            return None
    else:
        number = node.integer("output_dtype", 0)
        named = onnx.helper.tensor_dtype_to_np_dtype(number) if number else None
        dtype = given if named is None else np.dtype(named)
        dtype, allowed = np.dtype(np.uint8) if dtype is None else dtype, _QUANTIZED
    if dtype is None:
        return None
    if given is not None and dtype != given:
        return (
            f"its zero point {node.inputs[2]!r} has type {_name(given)}, expected {_name(dtype)} "
            f"as its integers have; {_AGAIN}"
        )
    if _name(dtype) not in allowed:
        return (
            f"its integers have type {_name(dtype)}, expected one of {', '.join(allowed)}; "
            "quantize the model to one of these"
        )
    return None


def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype.name)


def _zero_point_fault(node: Node, scale: Array, zero_point: Array) -> str | None:
    if zero_point.dtype == np.int32 and np.any(zero_point):
        return (
            f"its zero point {node.inputs[2]!r} is not 0, expected 0 for integers of type int32; "
            f"{_AGAIN}"
        )
    if zero_point.shape != scale.shape and not zero_point.size == scale.size == 1:
        return (
            f"its zero point {node.inputs[2]!r} has shape {zero_point.shape}, expected "
            f"{scale.shape} as its scale {node.inputs[1]!r} has; {_AGAIN}"
        )
    return None


def _shape_fault(node: Node, scale: Array, data: Array | None) -> str | None:
    """Judge the shape of scales by that of the tensor, where this is known."""
    block, axis = node.integer("block_size", 0), node.integer("axis", 1)
    found = f"its scale {node.inputs[1]!r} has shape {scale.shape}"
    if block < 0:
        return f"it has block_size={block}, expected a number > 0; {_AGAIN}"
    if scale.size == 1:
        return None
    if not block and scale.ndim > 1:
        return f"{found}, expected one number, or one for each index of axis {axis}; {_AGAIN}"
    if data is None:
        return None
    if not -data.ndim <= axis < data.ndim:
        return f"its axis {axis} does not exist in its {data.ndim}-D input; {_AGAIN}"
    axis %= data.ndim
    expected: tuple[int, ...] = (data.shape[axis],)
    if block:
        blocks = math.ceil(data.shape[axis] / block)
        expected = (*data.shape[:axis], blocks, *data.shape[axis + 1 :])
    if scale.shape == expected:
        return None
    reason = f" in blocks of {block}" if block else ""
    return (
        f"{found}, expected {expected} for axis {axis} of its input of shape {data.shape}{reason}; "
        f"{_AGAIN}"
    )


def _overflow(node: Node, scale: Array, data: Array) -> str | None:
    """Judge whether numbers are finite in float32, in which biases of large scales are not."""
    if data.dtype.kind not in "iu" or data.size == 0:
        return None
    greatest = np.abs(data.astype(np.float64)).max() * float(scale.max())
    if greatest <= np.finfo(np.float32).max:
        return None
    return (
        f"its integers {node.inputs[0]!r} times its scale {node.inputs[1]!r} reach {greatest:g}, "
        f"expected numbers that float32 holds; {_AGAIN}"
    )
