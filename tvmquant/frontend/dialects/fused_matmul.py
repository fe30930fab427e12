"""Products of matrices into which ONNX Runtime's optimizer fuses what stands around them."""

from __future__ import annotations

from tvmquant.frontend.dialects.draft import Draft, Integers
from tvmquant.frontend.dialects.matrices import columns, rows
from tvmquant.frontend.dialects.registry import rewriting
from tvmquant.frontend.node import Node


@rewriting("com.microsoft.MatMulIntegerToFloat", fewest=4, most=7)
def _write_integer_matmul(draft: Draft, node: Node) -> None:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = [*node.inputs, "", "", ""][:7]
    left = rows(draft, Integers(a, a_scale, a_zero), f"{node.name}/a")
    _write(draft, node, left, Integers(b, b_scale, b_zero), bias)


@rewriting("com.microsoft.DynamicQuantizeMatMul", fewest=3, most=5)
def _write_dynamic_matmul(draft: Draft, node: Node) -> None:
    a, b, b_scale, b_zero, bias = [*node.inputs, "", ""][:5]
    left = draft.dynamically_quantized(a, f"{node.name}/a")
    _write(draft, node, left, Integers(b, b_scale, b_zero), bias)


def _write(draft: Draft, node: Node, left: Integers, right: Integers, bias: str) -> None:
    inputs = [
        draft.dequantize(left, f"{node.name}/a"),
        draft.dequantize(columns(draft, right, f"{node.name}/b"), f"{node.name}/b"),
    ]
    product = draft.emit("MatMul", inputs, node.name, output="" if bias else node.outputs[0])
    if bias:
        draft.emit("Add", [product, bias], f"{node.name}/Add", output=node.outputs[0])
