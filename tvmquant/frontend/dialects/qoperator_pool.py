"""Pools and means of the QOperator format, with channels first or last.

ONNX Runtime sums integers and multiplies them in float32, so that QDQ may differ by one step where
a mean lies within float32's error of a tie.
"""

from __future__ import annotations

import numpy as np

from tvmquant.frontend.dialects.channels_last import channels_first, channels_last
from tvmquant.frontend.dialects.draft import Draft, Integers
from tvmquant.frontend.dialects.registry import rewriting
from tvmquant.frontend.node import Node

_WINDOW = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads",
           "strides")  # fmt: skip


@rewriting("com.microsoft.QLinearAveragePool", fewest=4, most=5, optional=(2,))
def _write_average_pool(draft: Draft, node: Node) -> None:
    rank = len(node.integers("kernel_shape")) + 2
    _write_pool(draft, node, "AveragePool", rank)


@rewriting("com.microsoft.QLinearGlobalAveragePool", fewest=4, most=5, optional=(2,))
def _write_global_pool(draft: Draft, node: Node) -> None:
    _write_pool(draft, node, "GlobalAveragePool", draft.rank_of(node.inputs[0]))


def _write_pool(draft: Draft, node: Node, op_type: str, rank: int | None) -> None:
    x, x_scale, x_zero, *scales = node.inputs
    is_last = node.integer("channels_last", 0) == 1
    if is_last:
        x = channels_first(draft, x, rank, f"{node.name}/x")
    source = draft.dequantize(Integers(x, x_scale, x_zero), f"{node.name}/x")
    real = draft.emit(op_type, [source], node.name, **node.selected(*_WINDOW))
    result = draft.value(f"{node.name}/y") if is_last else node.outputs[0]
    draft.quantize(real, Integers(result, *scales), node.name, like=x)
    if is_last:
        channels_last(draft, node, result, rank)


@rewriting("com.microsoft.NhwcMaxPool", fewest=1, most=1)
def _write_max_pool(draft: Draft, node: Node) -> None:
    """Write a maximum over windows of integers, which has no scale, with channels first."""
    rank = len(node.integers("kernel_shape")) + 2
    source = channels_first(draft, node.inputs[0], rank, f"{node.name}/x")
    result = draft.emit("MaxPool", [source], node.name, **node.selected(*_WINDOW))
    channels_last(draft, node, result, rank)


@rewriting("com.microsoft.QLinearReduceMean", fewest=4, most=5, optional=(2,))
def _write_mean(draft: Draft, node: Node) -> None:
    x, x_scale, x_zero, *scales = node.inputs
    axes = draft.constant(f"{node.name}/axes", np.array(node.integers("axes"), np.int64))
    source = draft.dequantize(Integers(x, x_scale, x_zero), f"{node.name}/x")
    real = draft.emit("ReduceMean", [source, axes], node.name, keepdims=node.integer("keepdims", 1))
    draft.quantize(real, Integers(node.outputs[0], *scales), node.name, like=x)
