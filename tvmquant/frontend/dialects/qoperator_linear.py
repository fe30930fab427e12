"""Convolutions and dense layers of the QOperator format.

They round ``accumulator * (x_scale * w_scale / y_scale)``, ties to even, of which QDQ in float32
differs by one step where that lies within float32's error of a tie.
"""

from __future__ import annotations

import numpy as np

from tvmquant.frontend.dialects.channels_last import channels_first, channels_last
from tvmquant.frontend.dialects.draft import Draft, Integers
from tvmquant.frontend.dialects.matrices import columns, rows
from tvmquant.frontend.dialects.registry import rewriting
from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
# Reads y_scale and y_zero_point where the result is quantized.
_GEMM_INPUTS = 9


@rewriting("QLinearConv", "com.microsoft.QLinearConv", fewest=8, most=9)
def _write_conv(draft: Draft, node: Node) -> None:
    """Write a convolution, whose weight stays (O, I, H, W) where its input has channels last."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    is_last = node.integer("channels_last", 0) == 1
    rank = draft.rank_of(w)
    if is_last:
        x = channels_first(draft, x, rank, f"{node.name}/x")
    inputs = [
        draft.dequantize(Integers(x, x_scale, x_zero), f"{node.name}/x"),
        draft.dequantize(Integers(w, w_scale, w_zero), f"{node.name}/w"),
    ]
    if len(node.inputs) > 8 and node.inputs[8]:
        inputs.append(dequantized_bias(draft, node, node.inputs[8], x_scale, w_scale))
    real = draft.emit("Conv", inputs, node.name, **node.selected(*_CONV))
    result = draft.value(f"{node.name}/y") if is_last else node.outputs[0]
    draft.quantize(real, Integers(result, y_scale, y_zero, axis=1), node.name, like=x)
    if is_last:
        channels_last(draft, node, result, rank)


@rewriting("QLinearMatMul", "com.microsoft.QLinearMatMul", fewest=8, most=8)
def _write_matmul(draft: Draft, node: Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    inputs = [
        draft.dequantize(
            rows(draft, Integers(a, a_scale, a_zero), f"{node.name}/a"), f"{node.name}/a"
        ),
        draft.dequantize(
            columns(draft, Integers(b, b_scale, b_zero), f"{node.name}/b"), f"{node.name}/b"
        ),
    ]
    real = draft.emit("MatMul", inputs, node.name)
    result = rows(draft, Integers(node.outputs[0], y_scale, y_zero), node.name)
    draft.quantize(real, result, node.name, like=a)


@rewriting("com.microsoft.QGemm", fewest=6, most=_GEMM_INPUTS, optional=(2, 5))
def _write_gemm(draft: Draft, node: Node) -> None:
    """Write ``alpha * a * b + c``, in which c has the scale ``alpha * a_scale * b_scale``."""
    padded = [*node.inputs, *([""] * _GEMM_INPUTS)][:_GEMM_INPUTS]
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = padded
    transposed = node.integer("transB", 0)
    inputs = [
        draft.dequantize(Integers(a, a_scale, a_zero), f"{node.name}/a"),
        draft.dequantize(
            Integers(b, b_scale, b_zero, axis=0 if transposed else 1), f"{node.name}/b"
        ),
    ]
    if c:
        alpha = node.number("alpha", 1.0)
        inputs.append(dequantized_bias(draft, node, c, a_scale, b_scale, alpha, axis=-1))
    attributes = node.selected("alpha", "transA", "transB")
    if not y_scale:
        draft.emit("Gemm", inputs, node.name, output=node.outputs[0], **attributes)
        return
    real = draft.emit("Gemm", inputs, node.name, **attributes)
    draft.quantize(real, Integers(node.outputs[0], y_scale, y_zero), node.name, like=a)


def dequantized_bias(
    draft: Draft,
    node: Node,
    bias: str,
    x_scale: str,
    w_scale: str,
    factor: float = 1.0,
    axis: int = 0,
) -> str:
    """Return a bias of accumulator steps, ``factor * x_scale * w_scale``, as real numbers."""
    of_x, of_w = draft.known.array(x_scale), draft.known.array(w_scale)
    name = f"{node.name}/bias"
    if of_x is not None and of_x.size != 1:
        raise UnsupportedNodeError(
            f"scale {x_scale!r} of its input has shape {of_x.shape}, expected one number"
        )
    if of_x is not None and of_w is not None:
        with np.errstate(all="ignore"):  # scales that are not valid are found afterwards
            product = of_w.astype(np.float64).reshape(-1) * of_x.reshape(()) * factor
            product = product.reshape(()) if product.size == 1 else product
            scale = draft.constant(f"{name}/scale", product.astype(np.float32))
    elif factor == 1.0:
        scale = draft.emit("Mul", [x_scale, w_scale], f"{name}/scale")
    else:
        raise UnsupportedNodeError("its scales are computed at run time; store them as constants")
    return draft.dequantize(Integers(bias, scale, axis=axis), name)
