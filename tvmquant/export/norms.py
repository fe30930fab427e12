"""Normalizations, and softmax."""

from __future__ import annotations

import numpy as np

from tvmquant.errors import UnsupportedModelError
from tvmquant.export.call_writer import CallWriter, Writer
from tvmquant.export.shapes import extents_of
from tvmquant.export.windows import reduced
from tvmquant.ir.tensor_types import integers

# The first opset with LayerNormalization.
LAYER_NORM_OPSET = 17


def _softmax(operator: str) -> Writer:
    return lambda writer: writer.node(operator, [writer.tensor(0)], axis=int(writer.attrs.axis))


def _batch_norm(writer: CallWriter) -> tuple[str, ...]:
    a, rank = writer.attrs, writer.rank_of(0)
    if bool(a.training):
        raise UnsupportedModelError(
            f"node {writer.name!r}: it normalizes by the statistics of the batch; export the "
            "network in inference mode"
        )
    axis = int(a.axis) % rank
    order = [0, axis, *(i for i in range(1, rank) if i != axis)]
    x, moves = writer.tensor(0), order != list(range(rank))
    x = writer.node("Transpose", [x], perm=order) if moves else x
    vectors = [writer.tensor(i) for i in range(1, 5)]
    y = writer.node("BatchNormalization", [x, *vectors], epsilon=float(a.epsilon))
    y = writer.node("Transpose", [y], perm=np.argsort(order).tolist()) if moves else y
    return y, *vectors[2:]


def _layer_norm(writer: CallWriter) -> str:
    rank, epsilon = writer.rank, float(writer.attrs.epsilon)
    axes = tuple(sorted(axis % rank for axis in integers(writer.attrs.axes)))
    trailing = axes == tuple(range(rank - len(axes), rank))
    operands = [writer.tensor(i) for i in range(3)]
    if trailing and writer.opset >= LAYER_NORM_OPSET:
        return writer.node("LayerNormalization", operands, axis=axes[0], epsilon=epsilon)
    x, *affine = operands
    centered = writer.node("Sub", [x, reduced(writer, "ReduceMean", x, axes, keeps=True)])
    square = writer.node("Mul", [centered, centered])
    variance = reduced(writer, "ReduceMean", square, axes, keeps=True)
    deviation = writer.node("Sqrt", [writer.node("Add", [variance, writer.number(epsilon)])])
    normal = writer.node("Div", [centered, deviation])
    extents = extents_of(writer.call)
    gamma, beta = (
        writer.reshaped(value, [extents[i] if i in axes else 1 for i in range(rank)])
        for value in affine
    )
    return writer.node("Add", [writer.node("Mul", [normal, gamma]), beta])


def _group_norm(writer: CallWriter) -> str:
    """Write the normalization of each group as that of an instance, as exporters do."""
    a, rank, groups = writer.attrs, writer.rank, int(writer.attrs.num_groups)
    if int(a.channel_axis) != 1 or integers(a.axes) != tuple(range(2, rank)):
        raise UnsupportedModelError(
            f"node {writer.name!r}: it normalizes over some axes only; expected all but the batch"
        )
    rows = writer.node("Reshape", [writer.tensor(0), writer.integers([0, groups, -1], "rows")])
    ones, zeros = (
        writer.constant(np.full(groups, value, np.float32), role)
        for value, role in ((1.0, "ones"), (0.0, "zeros"))
    )
    normal = writer.node("InstanceNormalization", [rows, ones, zeros], epsilon=float(a.epsilon))
    normal = writer.reshaped(normal, extents_of(writer.call))
    shape = writer.integers([-1, *[1] * (rank - 2)], "affine_shape")
    gamma, beta = (writer.node("Reshape", [writer.tensor(i), shape]) for i in (1, 2))
    return writer.node("Add", [writer.node("Mul", [normal, gamma]), beta])


NORMS: dict[str, Writer] = {
    "relax.nn.softmax": _softmax("Softmax"),
    "relax.nn.log_softmax": _softmax("LogSoftmax"),
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.group_norm": _group_norm,
}
