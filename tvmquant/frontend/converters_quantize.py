"""QuantizeLinear and DequantizeLinear, as float operators that round as ONNX says.

No pass makes integer operators of them: what they feed, such as a convolution whose weight is
dequantized, stays float.
"""

from __future__ import annotations

import numpy as np
import onnx
from tvm import relax

from tvmquant.frontend.context import Context, Value, as_float32
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter

# 4-bit integers live in 8-bit containers: (container, least, greatest)
_CONTAINERS = {
    "int4": ("int8", -8, 7),
    "uint4": ("uint8", 0, 15),
    "int8": ("int8", -128, 127),
    "uint8": ("uint8", 0, 255),
    "int16": ("int16", -32768, 32767),
    "uint16": ("uint16", 0, 65535),
}


def _check_blocks(node: Node) -> str | None:
    if node.integer("block_size", 0):
        return "it quantizes in blocks (block_size), expected per tensor or per channel"
    return None


def _parameters(ctx: Context, node: Node, channels: object) -> tuple[Array, Array, str]:
    """Return scale and zero point (scalars, or one per channel) and the integer type."""
    scale = ctx.weight(1)
    zero = ctx.value(2)
    if zero is None:
        dtype = _output_type(node)
        zero = np.zeros(scale.shape, np.int32)
    else:
        zero = ctx.optional_constant(2)
        raw = ctx.value(2)
        dtype = raw.dtype.name if isinstance(raw, np.ndarray) else ""
    if (scale <= 0).any():
        raise UnsupportedNodeError(f"its scale is {scale.min()}, expected a number > 0")
    if scale.size == 1:
        scale = scale.reshape(())
    elif scale.ndim != 1 or scale.size != channels:
        raise UnsupportedNodeError(
            f"its scale has shape {scale.shape}, expected one number or one per channel"
        )
    if zero is None or zero.size not in (1, scale.size):
        raise UnsupportedNodeError("its zero point does not have the shape of its scale")
    full = np.broadcast_to(zero.reshape(-1) if scale.ndim else zero.reshape(()), scale.shape)
    return scale, full.astype(np.int32), dtype


def _output_type(node: Node) -> str:
    number = node.integer("output_dtype", 0)
    return onnx.helper.tensor_dtype_to_np_dtype(number).name if number else "uint8"


def _axis(ctx: Context, node: Node, data: relax.Expr) -> int:
    rank = len(ctx.shape(data))
    return ctx.axis(rank, node.integer("axis", 1)) if rank > 1 else 0


def _channels(ctx: Context, node: Node, data: relax.Expr) -> object:
    shape = ctx.shape(data)
    return shape[_axis(ctx, node, data)] if shape else 1


@converter("QuantizeLinear", check=_check_blocks)
def _convert_quantize(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    scale, zero, dtype = _parameters(ctx, node, _channels(ctx, node, data))
    if dtype not in _CONTAINERS:
        raise UnsupportedNodeError(f"it quantizes to {dtype}, expected {', '.join(_CONTAINERS)}")
    container, least, greatest = _CONTAINERS[dtype]
    operands = (ctx.embed(scale), ctx.embed(zero.astype(container)))
    axis = _axis(ctx, node, data)
    result = ctx.emit(relax.op.quantize(data, *operands, axis=axis, out_dtype=container))
    if dtype in ("int4", "uint4"):
        result = ctx.emit(relax.op.clip(result, least, greatest))
    return result


@converter("DequantizeLinear", check=_check_blocks)
def _convert_dequantize(ctx: Context, node: Node) -> Value:
    """Emit a dequantize; 32-bit constants, that is biases, become float constants."""
    value = ctx.value(0)
    if isinstance(value, np.ndarray):
        axis = node.integer("axis", 1) if value.ndim > 1 else 0
        axis = ctx.axis(value.ndim, axis) if value.ndim else 0
        channels: object = value.shape[axis] if value.ndim else 1
    else:
        axis, channels = _axis(ctx, node, ctx.tensor(0)), _channels(ctx, node, ctx.tensor(0))
    scale, zero, _ = _parameters(ctx, node, channels)
    if isinstance(value, np.ndarray) and value.dtype.name == "int32":
        if scale.ndim:
            shape = [1] * value.ndim
            shape[axis] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        return (value.astype(np.int64) - zero).astype(np.float32) * scale
    data = ctx.embed(as_float32(value)) if isinstance(value, np.ndarray) else ctx.tensor(0)
    dtype = str(data.ty.dtype)
    if dtype not in {container for container, _, _ in _CONTAINERS.values()}:
        raise UnsupportedNodeError(f"it dequantizes {dtype}, expected {', '.join(_CONTAINERS)}")
    operands = (ctx.embed(scale), ctx.embed(zero.astype(dtype)))
    return ctx.emit(relax.op.dequantize(data, *operands, axis=axis))
