"""Arithmetic, activations and concatenation of the QOperator format.

ONNX Runtime looks activations up in tables that it computes as these nodes say: dequantize, apply,
quantize.
"""

from __future__ import annotations

from typing import Any

from tvmquant.frontend.dialects.draft import OPSET, Draft, Integers
from tvmquant.frontend.dialects.registry import rewriting
from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node

# The last version of Softmax that runs over all axes from its own on.
_FLATTENING_SOFTMAX = 11


@rewriting("com.microsoft.QLinearAdd", fewest=7, most=8, optional=(2, 5))
def _write_add(draft: Draft, node: Node) -> None:
    _write_arithmetic(draft, node, "Add")


@rewriting("com.microsoft.QLinearMul", fewest=7, most=8, optional=(2, 5))
def _write_mul(draft: Draft, node: Node) -> None:
    _write_arithmetic(draft, node, "Mul")


def _write_arithmetic(draft: Draft, node: Node, op_type: str) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, *result = node.inputs
    inputs = [
        draft.dequantize(Integers(a, a_scale, a_zero), f"{node.name}/a"),
        draft.dequantize(Integers(b, b_scale, b_zero), f"{node.name}/b"),
    ]
    real = draft.emit(op_type, inputs, node.name)
    draft.quantize(real, Integers(node.outputs[0], *result), node.name, like=a)


@rewriting("com.microsoft.QLinearLeakyRelu", fewest=4, most=5, optional=(2,))
def _write_leaky_relu(draft: Draft, node: Node) -> None:
    write_unary(draft, node, "LeakyRelu", alpha=node.number("alpha", 0.01))


@rewriting("com.microsoft.QLinearSigmoid", fewest=4, most=5, optional=(2,))
def _write_sigmoid(draft: Draft, node: Node) -> None:
    write_unary(draft, node, "Sigmoid")


@rewriting("com.microsoft.QLinearSoftmax", fewest=4, most=5, optional=(2,))
def _write_softmax(draft: Draft, node: Node) -> None:
    """Write a softmax of the version that the node's attribute ``opset`` names."""
    opset = node.integer("opset", 0)
    if opset < 1:
        raise UnsupportedNodeError(f"opset={opset}, expected the opset of the Softmax it is")
    version = OPSET if opset >= 13 else _FLATTENING_SOFTMAX
    write_unary(draft, node, "Softmax", axis=node.integer("axis", -1), opset=version)


def write_unary(
    draft: Draft, node: Node, op_type: str, *, opset: int = OPSET, **attributes: Any
) -> None:
    """Write an operator of one tensor: inputs x, x_scale, x_zero_point, y_scale, y_zero_point."""
    x, x_scale, x_zero, *result = node.inputs
    source = draft.dequantize(Integers(x, x_scale, x_zero), f"{node.name}/x")
    real = draft.emit(op_type, [source], node.name, opset=opset, **attributes)
    draft.quantize(real, Integers(node.outputs[0], *result), node.name, like=x)


@rewriting("com.microsoft.QLinearConcat", fewest=5, most=2**31, optional=(4,))
def _write_concat(draft: Draft, node: Node) -> None:
    """Write a concatenation: inputs y_scale, y_zero_point, and three for each tensor."""
    y_scale, y_zero, *operands = node.inputs
    if len(operands) % 3:
        raise UnsupportedNodeError(
            f"it has {len(operands)} inputs after its output's zero point, expected three for each "
            "tensor: the tensor, its scale and zero point"
        )
    reals = [
        draft.dequantize(Integers(*operands[index : index + 3]), f"{node.name}/{index // 3}")
        for index in range(0, len(operands), 3)
    ]
    real = draft.emit("Concat", reals, node.name, axis=node.integer("axis", 0))
    draft.quantize(real, Integers(node.outputs[0], y_scale, y_zero), node.name, like=operands[0])


@rewriting("com.microsoft.QLinearWhere", fewest=9, most=9)
def _write_where(draft: Draft, node: Node) -> None:
    condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero = node.inputs
    inputs = [
        condition,
        draft.dequantize(Integers(x, x_scale, x_zero), f"{node.name}/x"),
        draft.dequantize(Integers(y, y_scale, y_zero), f"{node.name}/y"),
    ]
    real = draft.emit("Where", inputs, node.name)
    draft.quantize(real, Integers(node.outputs[0], z_scale, z_zero), node.name, like=x)


@rewriting("com.microsoft.QuantizeLinear", fewest=2, most=3)
def _write_quantize(draft: Draft, node: Node) -> None:
    _write_as_of_onnx(draft, node, "QuantizeLinear")


@rewriting("com.microsoft.DequantizeLinear", fewest=2, most=3)
def _write_dequantize(draft: Draft, node: Node) -> None:
    _write_as_of_onnx(draft, node, "DequantizeLinear")


def _write_as_of_onnx(draft: Draft, node: Node, op_type: str) -> None:
    """Write a node of an operator that ONNX Runtime had for more types than ONNX at the time."""
    attributes = node.selected("axis", "block_size")
    draft.emit(op_type, node.inputs, node.name, output=node.outputs[0], **attributes)
