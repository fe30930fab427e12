"""QuantizeLinear and DequantizeLinear: the scales that come with a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.converters_dynamic import real_by_range
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.quantized_tensor import QuantizedTensor
from tvmquant.frontend.ranged_tensor import RangedTensor
from tvmquant.frontend.registry import converter
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.imported_quantizers import FEW_BITS, imported_activation, integer_range
from tvmquant.passes.elementwise import scalar_bound

# So far from a whole step float32 may put a bound of 16 bits.
WHOLE = 2.0**-6


@converter("QuantizeLinear")
def _convert_quantize(ctx: Context, node: Node) -> QuantizedTensor:
    wanted = _parameters(ctx, node, _type_of_result(ctx, node))
    name = node.inputs[0]
    for known in ctx.quantized.get(name, []):
        if known.is_like(wanted):
            return known
    data = ctx.tensor(0)
    if not qop.is_float(data):
        data = ctx.emit(relax.op.astype(data, "float32"))
    data, limits = _without_clip(ctx, data, wanted)
    result = _fake_quantized(ctx, data, wanted, limits)
    ctx.quantized.setdefault(name, []).append(result)
    return result


@converter("DequantizeLinear")
def _convert_dequantize(ctx: Context, node: Node) -> relax.Expr:
    value = ctx.value(0)
    if isinstance(value, RangedTensor):
        return real_by_range(ctx, value)
    if isinstance(value, QuantizedTensor):
        wanted = _parameters(ctx, node, value.dtype)
        return value.real if value.is_like(wanted) else _reinterpreted(ctx, value, wanted)
    data = ctx.tensor(0)
    dtype = str(data.ty.dtype.dtype)
    if dtype not in ("int8", "uint8", "int16"):
        raise UnsupportedNodeError(
            f"it dequantizes a tensor of type {dtype} that is not known at import; expected int8, "
            "uint8 or int16"
        )
    wanted = _parameters(ctx, node, dtype)
    attrs = {"zero_point": wanted.zero_point, "axis": wanted.axis, "out_dtype": "float32",
             "id": node.name}  # fmt: skip
    real = ctx.emit(qop.emit(qop.DEQUANTIZE, [data, ctx.embed(wanted.scale)], attrs))
    return _fake_quantized(ctx, real, wanted).real


def _without_clip(
    ctx: Context, data: relax.Expr, wanted: QuantizedTensor
) -> tuple[relax.Expr, tuple[int, int] | None]:
    """Return what a clip to whole steps reads, and between which integers it ends.

    Of integers of 2 or 3 bits, which have no type of their own, and of 16 bits, of which runtimes
    clip none: files hold this instead.
    """
    made = ctx.builder.lookup_binding(data) if isinstance(data, relax.Var) else None
    if not qop.is_call(made, "relax.clip") or wanted.axis >= 0:
        return data, None
    bounds = np.asarray([scalar_bound(end) for end in made.args[1:]])
    steps = bounds / np.float64(wanted.scale[0]) + wanted.zero_point
    whole = np.rint(steps)
    if not np.all(np.abs(whole) < 2**15) or np.any(np.abs(steps - whole) > WHOLE):
        return data, None
    _, least, greatest = integer_range(wanted.dtype)
    low, high = int(whole[0]), int(whole[1])
    few = (high - low).bit_length() <= FEW_BITS and not ctx.requantize
    if not least <= low < high <= greatest or not (few or wanted.dtype == "int16"):
        return data, None
    return made.args[0], (low, high)


def clipped(ctx: Context, value: QuantizedTensor, low: float, high: float) -> QuantizedTensor:
    """Return integers between two limits: those of a quantizer of fewer levels.

    Parameters
    ----------
    ctx : Context
    value : QuantizedTensor
    low, high : float
        Integers, or infinite.
    """
    _, least, greatest = integer_range(value.dtype)
    limits = int(min(max(low, least), greatest)), int(max(min(high, greatest), least))
    if ctx.requantize or limits == (least, greatest):
        return value
    made = ctx.builder.lookup_binding(value.real)
    if qop.is_call(made, qop.FAKE_QUANT):
        return _fake_quantized(ctx, made.args[0], value, limits)
    steps = (np.asarray(limits, np.float64) - value.zero_point) * np.float64(value.scale.max())
    # moved since they were quantized, by one scale
    real = ctx.emit(relax.op.clip(value.real, *steps.tolist()))
    return _fake_quantized(ctx, real, value, limits)


def _fake_quantized(
    ctx: Context,
    data: relax.Expr,
    wanted: QuantizedTensor,
    limits: tuple[int, int] | None = None,
) -> QuantizedTensor:
    """Round a float tensor as the node does, unless the model is to be quantized anew."""
    if ctx.requantize:
        return replace(wanted, real=data)
    call = imported_activation(
        data, wanted.scale, wanted.zero_point, wanted.dtype, axis=wanted.axis, name=ctx.node.name,
        ties="up" if ctx.own else "even", limits=limits,
    )  # fmt: skip
    return replace(wanted, real=ctx.emit(call))


def _reinterpreted(ctx: Context, value: QuantizedTensor, wanted: QuantizedTensor) -> relax.Expr:
    """Return what integers stand for under another scale and zero point."""
    if value.axis >= 0 or wanted.axis >= 0:
        raise UnsupportedNodeError(
            "it dequantizes with other scales than those that the tensor was quantized with, and "
            "one of them differs along an axis; give both one scale"
        )
    ratio = np.float64(wanted.scale[0]) / np.float64(value.scale[0])
    shift = (value.zero_point - wanted.zero_point) * np.float64(wanted.scale[0])
    scaled = ctx.emit(relax.op.multiply(value.real, ctx.embed(np.asarray(ratio, np.float32))))
    real = ctx.emit(relax.op.add(scaled, ctx.embed(np.asarray(shift, np.float32))))
    return _fake_quantized(ctx, real, wanted).real


def _parameters(ctx: Context, node: Node, dtype: str) -> QuantizedTensor:
    """Return what scale, zero point and axis of a node say of its integers, not yet what these are.

    Raises
    ------
    UnsupportedNodeError
        If they are not constant, or zero points differ along the axis.
    """
    scale = ctx.weight(1)
    given = None if ctx.value(2) is None else ctx.weight(2)
    zero = np.zeros(1, np.int64) if given is None else given.astype(np.int64).reshape(-1)
    if np.any(zero != zero[0]):
        raise UnsupportedNodeError(
            "zero points of an activation differ along an axis; expected one for all channels"
        )
    shape = ctx.shape(_data(ctx))
    if scale.size > 1 and (scale.ndim > 1 or node.integer("block_size", 0)):
        raise UnsupportedNodeError(
            "it quantizes an activation in blocks; expected one scale, or one for each channel"
        )
    axis = -1 if scale.size == 1 else ctx.axis(len(shape), node.integer("axis", 1))
    if axis >= 0 and scale.size != shape[axis]:
        raise UnsupportedNodeError(
            f"it has {scale.size} scales for axis {axis} of extent {shape[axis]}; expected as many"
        )
    flat: Array = np.asarray(scale, np.float32).reshape(-1)
    return QuantizedTensor(_data(ctx), flat, int(zero[0]), dtype, axis)


def _data(ctx: Context) -> relax.Expr:
    value = ctx.value(0)
    return value.real if isinstance(value, QuantizedTensor) else ctx.tensor(0)


def _type_of_result(ctx: Context, node: Node) -> str:
    """Return the integer type that a QuantizeLinear gives."""
    zero = ctx.value(2)
    if isinstance(zero, np.ndarray):
        return str(zero.dtype.name)
    number = node.integer("output_dtype", 0) or onnx.TensorProto.UINT8
    return str(onnx.TensorProto.DataType.Name(number)).lower()
