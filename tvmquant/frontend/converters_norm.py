"""Normalizations by the statistics of the tensor itself."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Array, Batch, UnsupportedNodeError, show
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter


def _scalar(value: float) -> relax.Expr:
    return relax.const(np.float32(value), "float32")


def _channels(ctx: Context, data: relax.Expr) -> int:
    """Return the channels of a tensor (N, C, ...)."""
    shape = ctx.shape(data)
    if len(shape) < 3 or isinstance(shape[1], Batch):
        raise UnsupportedNodeError(f"its input has shape {show(shape)}, expected (N, C, ...)")
    return shape[1]


def _group_norm(
    ctx: Context, data: relax.Expr, groups: int, scale: Array, bias: Array, epsilon: float
) -> relax.Var:
    channels, rank = _channels(ctx, data), len(ctx.shape(data))
    if groups < 1 or channels % groups or {scale.size, bias.size} != {channels}:
        raise UnsupportedNodeError(
            f"it normalizes {channels} channels in {groups} groups with {scale.size} scales and "
            f"{bias.size} biases"
        )
    call = relax.op.nn.group_norm(
        data, ctx.embed(scale.ravel()), ctx.embed(bias.ravel()), groups, 1,
        list(range(2, rank)), epsilon,
    )  # fmt: skip
    return ctx.emit(call)


@converter("InstanceNormalization")
def _convert_instance_norm(ctx: Context, node: Node) -> relax.Var:
    data, scale, bias = ctx.tensor(0), ctx.weight(1), ctx.weight(2)
    epsilon = node.number("epsilon", 1e-5)
    return _group_norm(ctx, data, _channels(ctx, data), scale, bias, epsilon)


@converter("GroupNormalization")
def _convert_group_norm(ctx: Context, node: Node) -> relax.Var:
    """Emit one scale and bias per channel; before opset 21 a node has one per group."""
    data, scale, bias = ctx.tensor(0), ctx.weight(1), ctx.weight(2)
    groups, channels = node.integer("num_groups", 1), _channels(ctx, data)
    if node.opset < 21 and scale.size == bias.size == groups > 0:
        scale, bias = (np.repeat(values, channels // groups) for values in (scale, bias))
    return _group_norm(ctx, data, groups, scale, bias, node.number("epsilon", 1e-5))


@converter("MeanVarianceNormalization")
def _convert_mean_variance_norm(ctx: Context, node: Node) -> relax.Var:
    """Emit a normalization without scales over channels and positions, or over positions."""
    data = ctx.tensor(0)
    shape = ctx.shape(data)
    given = node.integers("axes", [0, 2, 3])
    axes = sorted({ctx.axis(len(shape), axis) for axis in given})
    positions, channels = list(range(2, len(shape))), _channels(ctx, data)
    if axes == [0, *positions] and shape[0] == 1:
        axes = positions
    if axes not in (positions, [1, *positions]):
        raise UnsupportedNodeError(
            f"it normalizes over axes {axes}, which mix samples or positions"
        )
    groups = 1 if axes[0] == 1 else channels
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return _group_norm(ctx, data, groups, ones, zeros, 1e-9)


@converter("LpNormalization")
def _convert_lp_norm(ctx: Context, node: Node) -> relax.Var:
    """Emit a division by the norm; vectors of zeros stay zeros."""
    data, order = ctx.tensor(0), node.integer("p", 2)
    shape = ctx.shape(data)
    axis = ctx.axis(len(shape), node.integer("axis", -1))
    ctx.keep_batch(shape, [axis])
    if order == 1:
        norm = ctx.emit(relax.op.sum(ctx.emit(relax.op.abs(data)), [axis], True))
    else:
        squares = ctx.emit(relax.op.multiply(data, data))
        norm = ctx.emit(relax.op.sqrt(ctx.emit(relax.op.sum(squares, [axis], True))))
    least = _scalar(float(np.finfo(np.float32).tiny))
    return ctx.emit(relax.op.divide(data, ctx.emit(relax.op.maximum(norm, least))))


@converter("RMSNormalization")
def _convert_rms_norm(ctx: Context, node: Node) -> relax.Var:
    data, scale = ctx.tensor(0), ctx.weight(1)
    shape = ctx.shape(data)
    axes = list(range(ctx.axis(len(shape), node.integer("axis", -1)), len(shape)))
    ctx.keep_batch(shape, axes)
    mean = ctx.emit(relax.op.mean(ctx.emit(relax.op.multiply(data, data)), axes, True))
    shifted = ctx.emit(relax.op.add(mean, _scalar(node.number("epsilon", 1e-5))))
    normal = ctx.emit(relax.op.divide(data, ctx.emit(relax.op.sqrt(shifted))))
    return ctx.emit(relax.op.multiply(normal, ctx.embed(scale)))


@converter("LRN")
def _convert_lrn(ctx: Context, node: Node) -> relax.Var:
    """Emit ``x * (bias + alpha / size * sum of the squares of the channels around it) ** -beta``.

    The sum over channels is a 1x1 convolution whose matrix has a band of ones.
    """
    given = ctx.tensor(0)
    data = ctx.as_image(given)
    ctx.spatial(data)
    channels, size = _channels(ctx, data), node.integer("size", 1)
    before, after = (size - 1) // 2, -(-(size - 1) // 2)
    distance = np.subtract.outer(np.arange(channels), np.arange(channels))
    band = (distance <= before) & (distance >= -after)
    weight = band * np.float32(node.number("alpha", 1e-4) / size)
    squares = ctx.emit(relax.op.multiply(data, data))
    weights = ctx.embed(weight.astype(np.float32)[:, :, None, None])
    sums = ctx.emit(relax.op.nn.conv2d(squares, weights))
    bias = np.full((1, channels, 1, 1), node.number("bias", 1.0), np.float32)
    shifted = ctx.emit(relax.op.add(sums, ctx.embed(bias)))
    factor = ctx.emit(relax.op.power(shifted, _scalar(-node.number("beta", 0.75))))
    return ctx.as_given(ctx.emit(relax.op.multiply(data, factor)), given)
