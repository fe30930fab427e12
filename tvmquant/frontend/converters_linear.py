"""Convolutions, dense layers and normalizations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import (
    Array,
    Batch,
    Shape,
    UnsupportedNodeError,
    broadcast_shapes,
    count,
    show,
)
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter
from tvmquant.frontend.stored_matrices import stored_product
from tvmquant.frontend.windows import Window, read_pads, read_window, widen


def _kernel_shape(ctx: Context) -> tuple[int, ...]:
    """Return the shape of the weight, which has as many spatial axes as the input."""
    weight, rank = ctx.shape(ctx.tensor(1)), len(ctx.shape(ctx.tensor(0)))
    if len(weight) != rank:
        raise UnsupportedNodeError(
            f"its weight has shape {show(weight)}, expected {rank} dimensions as its input has"
        )
    return tuple(int(dim) for dim in weight if not isinstance(dim, Batch))


def _add_channel_bias(ctx: Context, result: relax.Var, index: int) -> relax.Var:
    """Add input ``index`` of the node, one number per channel, to an NCHW tensor."""
    if ctx.value(index) is None:
        return result
    if ctx.is_constant(index):
        bias = ctx.weight(index)
        return ctx.emit(relax.op.add(result, ctx.embed(bias.reshape(1, -1, 1, 1))))
    tensor = ctx.tensor(index)
    return ctx.emit(relax.op.add(result, ctx.reshape(tensor, (1, *ctx.shape(tensor), 1, 1))))


@converter("Conv")
def _convert_conv(ctx: Context, node: Node) -> relax.Var:
    data, weight = ctx.as_image(ctx.tensor(0)), ctx.as_image(ctx.tensor(1))
    size = ctx.spatial(data)
    outputs, inputs, *kernel = _kernel_shape(ctx)
    group = node.integer("group", 1)
    channels = ctx.shape(data)[1]
    if inputs * group != channels or outputs % group:
        raise UnsupportedNodeError(
            f"its weight has shape {show(ctx.shape(weight))} and its input {channels} channels, "
            f"which do not match with group={group}"
        )
    window = read_window(node, tuple(kernel), size)
    weight = ctx.layer_weight(1, weight, 0, groups=group)
    call = relax.op.nn.conv2d(data, weight, groups=group, **window.attributes())
    return ctx.as_given(_add_channel_bias(ctx, ctx.emit(call), 2), ctx.tensor(0))


@converter("ConvTranspose")
def _convert_conv_transpose(ctx: Context, node: Node) -> relax.Var:
    data, weight = ctx.as_image(ctx.tensor(0)), ctx.as_image(ctx.tensor(1))
    size = ctx.spatial(data)
    inputs, _, *kernel = _kernel_shape(ctx)
    group = node.integer("group", 1)
    if inputs != ctx.shape(data)[1] or inputs % group:
        raise UnsupportedNodeError(
            f"its weight has shape {show(ctx.shape(weight))} and its input "
            f"{ctx.shape(data)[1]} channels, which do not match with group={group}"
        )
    window, output_padding = _transposed_window(node, tuple(kernel), size)
    weight = ctx.layer_weight(1, weight, 1, groups=group)
    call = relax.op.nn.conv2d_transpose(
        data, weight, groups=group, output_padding=output_padding, **window.attributes()
    )
    return ctx.as_given(_add_channel_bias(ctx, ctx.emit(call), 2), ctx.tensor(0))


def _transposed_window(
    node: Node, kernel: tuple[int, ...], size: tuple[int, int]
) -> tuple[Window, tuple[int, int]]:
    """Return window and output padding of a ConvTranspose.

    ``output = stride * (input - 1) + output_padding + reach - pad_begin - pad_end``; where the node
    asks for an output size, or for SAME, the pads follow from this equation.
    """
    auto = node.text("auto_pad", "NOTSET")
    # the window of SAME refers to the output here, so it is resolved below
    window = replace(read_window(node, kernel, size), pads=(0, 0, 0, 0))
    rank = len(kernel)
    extra = widen(node.integers("output_padding", [0] * rank), 0)
    wanted = node.integers("output_shape")[-rank:]
    wanted = widen(wanted, 1) if wanted else []
    if not wanted and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size[axis] * window.strides[axis] for axis in range(2)]
    if not wanted:
        pads = [0, 0, 0, 0] if auto == "VALID" else read_pads(node, rank)
        padded = replace(window, pads=(pads[0], pads[1], pads[2], pads[3]))
        return padded, (extra[0], extra[1])
    pads = [0, 0, 0, 0]
    for axis in range(2):
        full = window.strides[axis] * (size[axis] - 1) + extra[axis] + window.reach(axis)
        total = full - wanted[axis]
        if total < 0:
            extra[axis] -= total
            total = 0
        less, more = total // 2, total - total // 2
        upper = auto == "SAME_UPPER"
        pads[axis], pads[axis + 2] = (less, more) if upper else (more, less)
    for axis in range(2):
        if extra[axis] >= max(window.strides[axis], window.dilations[axis]):
            raise UnsupportedNodeError(f"its output_shape {wanted} is too large for its stride")
    return replace(window, pads=(pads[0], pads[1], pads[2], pads[3])), (extra[0], extra[1])


@converter("Gemm")
def _convert_gemm(ctx: Context, node: Node) -> relax.Var:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    data = ctx.tensor(0)
    if node.integer("transA", 0):
        ctx.keep_batch(ctx.shape(data), [0, 1])
        data = ctx.emit(relax.op.permute_dims(data, [1, 0]))
    transposed = node.integer("transB", 0) == 1
    if ctx.is_constant(1):
        matrix = ctx.weight(1)
        matrix = matrix.T if transposed else matrix
        weight = ctx.layer_weight(
            1, ctx.embed(matrix), 1, arranged=np.transpose if transposed else None
        )
        if isinstance(weight, GenericConst):
            weight, alpha = ctx.embed(_scaled(matrix, alpha)), 1.0
    else:
        weight = ctx.tensor(1)
        if transposed:
            weight = ctx.emit(relax.op.permute_dims(weight, [1, 0]))
    _check_inner(ctx.shape(data), ctx.shape(weight))
    result = ctx.emit(relax.op.matmul(data, weight))
    if alpha != 1.0:
        result = ctx.emit(relax.op.multiply(result, relax.const(alpha, "float32")))
    if ctx.value(2) is None or beta == 0.0:
        return result
    if ctx.is_constant(2):
        return ctx.emit(relax.op.add(result, ctx.embed(_row_bias(ctx, result, beta))))
    bias = ctx.tensor(2)
    if beta != 1.0:
        bias = ctx.emit(relax.op.multiply(bias, relax.const(beta, "float32")))
    return ctx.emit(relax.op.add(result, bias))


def _scaled(array: Array, factor: float) -> Array:
    return array if factor == 1.0 else (array * np.float64(factor)).astype(np.float32)


def _row_bias(ctx: Context, result: relax.Var, beta: float) -> Array:
    """Return the constant bias of a Gemm, as a vector if it is the same for every row."""
    bias = _scaled(ctx.weight(2), beta)
    columns = ctx.shape(result)[1]
    broadcast_shapes(ctx.shape(result), bias.shape)
    if count(bias.shape[:-1]) == 1 and not isinstance(columns, Batch):
        return np.broadcast_to(bias.reshape(-1), (columns,)).copy()
    return bias


def _check_inner(left: Shape, right: Shape) -> None:
    inner = right[-2] if len(right) > 1 else right[0]
    if left[-1] != inner:
        raise UnsupportedNodeError(f"it multiplies matrices of shapes {show(left)}, {show(right)}")


@converter("MatMul")
def _convert_matmul(ctx: Context, node: Node) -> relax.Var:
    left, right = ctx.tensor(0), ctx.tensor(1)
    _check_inner(ctx.shape(left), ctx.shape(right))
    broadcast_shapes(ctx.shape(left)[:-2], ctx.shape(right)[:-2])
    ctx.keep_batch(ctx.shape(left), [-1])
    if len(ctx.shape(left)) <= 2:
        ctx.keep_batch(ctx.shape(right), [0])
    if len(ctx.shape(right)) == 2:
        right = ctx.layer_weight(1, right, 1)
    elif (product := stored_product(ctx)) is not None:
        return product
    return ctx.emit(relax.op.matmul(left, right))


@converter("BatchNormalization")
def _convert_batch_norm(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    statistics = [ctx.embed(ctx.weight(index)) for index in range(1, 5)]
    if len(ctx.shape(data)) < 2:
        raise UnsupportedNodeError(f"its input has shape {show(ctx.shape(data))}, no channels")
    call = relax.op.nn.batch_norm(
        ctx.as_image(data),
        *statistics,
        axis=1,
        epsilon=node.number("epsilon", 1e-5),
        training=False,
    )
    return ctx.as_given(ctx.emit(relax.TupleGetItem(ctx.emit(call), 0)), data)


@converter("LayerNormalization")
def _convert_layer_norm(ctx: Context, node: Node) -> tuple[relax.Var, ...]:
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    axes = list(range(ctx.axis(len(shape), node.integer("axis", -1)), len(shape)))
    ctx.keep_batch(shape, axes)
    scale = ctx.weight(1)
    bias = np.zeros_like(scale) if ctx.value(2) is None else ctx.weight(2)
    epsilon = node.number("epsilon", 1e-5)
    call = relax.op.nn.layer_norm(data, ctx.embed(scale), ctx.embed(bias), axes, epsilon=epsilon)
    result = ctx.emit(call)
    if not any(node.outputs[1:]):
        return (result,)
    mean = ctx.emit(relax.op.mean(data, axes, True))
    centered = ctx.emit(relax.op.subtract(data, mean))
    squares = ctx.emit(relax.op.multiply(centered, centered))
    variance = ctx.emit(relax.op.mean(squares, axes, True))
    shifted = ctx.emit(relax.op.add(variance, relax.const(np.float32(epsilon), "float32")))
    return result, mean, ctx.emit(relax.op.rsqrt(shifted))
