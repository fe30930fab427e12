"""Element types and numbers of dimensions, as far as the nodes that compute values tell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from tvmquant.frontend.dialects.known_values import KnownValues

# Operators that leave type and number of dimensions of their first input as they are.
_ALIKE = frozenset({"Clip", "Identity", "MaxPool", "Relu", "Slice", "Transpose"})
# Operators that leave its type.
MOVERS = _ALIKE | {
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Pad", "Reshape"),
    *("Resize", "SpaceToDepth", "Split", "Squeeze", "Tile", "Unsqueeze"),
}


def type_of(
    known: KnownValues, inputs: Mapping[str, onnx.TypeProto.Tensor], name: str
) -> np.dtype[Any] | None:
    """Return the element type of a value, None where that takes more than looking at nodes.

    Parameters
    ----------
    known : KnownValues
    inputs : mapping of str to onnx.TypeProto.Tensor
        Types of the model's inputs.
    name : str
    """
    while True:
        if name in inputs:
            return numpy_type(inputs[name].elem_type)
        node = known.producer(name)
        if node is None or node.op_type == "Constant":
            array = known.array(name)
            return None if array is None else array.dtype
        if node.op_type == "DynamicQuantizeLinear":
            return np.dtype(np.float32 if name == node.proto.output[1] else np.uint8)
        if node.op_type == "QuantizeLinear":
            if len(node.inputs) < 3 or not node.inputs[2]:
                return numpy_type(node.integer("output_dtype", 0) or onnx.TensorProto.UINT8)
            name = node.inputs[2]
        elif node.op_type == "Cast":
            return numpy_type(node.integer("to", 0))
        elif node.op_type in MOVERS:
            name = node.inputs[0]
        else:
            array = known.array(name)
            return None if array is None else array.dtype


def rank_of(
    known: KnownValues, inputs: Mapping[str, onnx.TypeProto.Tensor], name: str
) -> int | None:
    """Return the number of dimensions of a value, None where it is not known.

    Parameters
    ----------
    known : KnownValues
    inputs : mapping of str to onnx.TypeProto.Tensor
        Types of the model's inputs.
    name : str
    """
    while True:
        if name in inputs:
            return len(inputs[name].shape.dim) if inputs[name].HasField("shape") else None
        node = known.producer(name)
        if node is not None and node.op_type == "Transpose" and node.integers("perm"):
            return len(node.integers("perm"))
        if node is not None and node.op_type == "Conv":
            name = node.inputs[1]
        elif node is not None and (
            node.op_type in _ALIKE or node.op_type in ("QuantizeLinear", "DequantizeLinear")
        ):
            name = node.inputs[0]
        else:
            array = known.array(name)
            return None if array is None else array.ndim


def numpy_type(element: int) -> np.dtype[Any] | None:
    """Return one of ONNX's element types, None if there is no such type."""
    try:
        dtype: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(element)
    except (KeyError, TypeError):
        return None
    return dtype
