"""Pooling over windows, and reductions along axes."""

from __future__ import annotations

import math

import numpy as np

from tvmquant.errors import UnsupportedModelError
from tvmquant.export.call_writer import CallWriter, Writer
from tvmquant.export.shapes import extents_of
from tvmquant.ir.tensor_types import integers

# The first opsets in which reductions take their axes as an input.
AXES_INPUT_OPSET = 18
SUM_AXES_INPUT_OPSET = 13


def _max_pool2d(writer: CallWriter) -> str:
    a = writer.attrs
    return writer.node(
        "MaxPool", [writer.tensor(0)], kernel_shape=integers(a.pool_size),
        strides=integers(a.strides), pads=integers(a.padding), dilations=integers(a.dilation),
        ceil_mode=int(a.ceil_mode),
    )  # fmt: skip


def _avg_pool2d(writer: CallWriter) -> str:
    a = writer.attrs
    if any(step > 1 for step in integers(a.dilation)):
        return _dilated_average(writer)
    return writer.node(
        "AveragePool", [writer.tensor(0)], kernel_shape=integers(a.pool_size),
        strides=integers(a.strides), pads=integers(a.padding), ceil_mode=int(a.ceil_mode),
        count_include_pad=int(a.count_include_pad),
    )  # fmt: skip


def _dilated_average(writer: CallWriter) -> str:
    """Write the average as the sums of windows over the numbers of their elements.

    AveragePool has dilations since opset 19 only.
    """
    a = writer.attrs
    if int(a.ceil_mode):
        raise UnsupportedModelError(
            f"node {writer.name!r}: it averages over dilated windows that reach beyond the "
            "padding, which ONNX has no operator for"
        )
    extents = extents_of(writer.call.args[0])
    channels, size = int(extents[1]), integers(extents[2:])
    kernel = integers(a.pool_size)
    ones = writer.constant(np.ones((channels, 1, *kernel), np.float32), "ones")
    window = {
        "kernel_shape": kernel, "strides": integers(a.strides), "pads": integers(a.padding),
        "dilations": integers(a.dilation),
    }  # fmt: skip
    total = writer.node("Conv", [writer.tensor(0), ones], group=channels, **window)
    if int(a.count_include_pad):
        return writer.node("Mul", [total, writer.number(1.0 / math.prod(kernel))])
    inside = writer.constant(np.ones((1, 1, *size), np.float32), "inside")
    one = writer.constant(np.ones((1, 1, *kernel), np.float32), "one")
    return writer.node("Div", [total, writer.node("Conv", [inside, one], **window)])


def _adaptive_avg_pool2d(writer: CallWriter) -> str:
    """Write an average over windows of one size, into which the image divides."""
    if writer.attrs.output_size is None:
        return writer.tensor(0)
    size = integers(extents_of(writer.call.args[0])[2:])
    wanted = integers(writer.attrs.output_size)
    if wanted == (1, 1):
        return writer.node("GlobalAveragePool", [writer.tensor(0)])
    if any(n % m for n, m in zip(size, wanted, strict=True)):
        raise UnsupportedModelError(
            f"node {writer.name!r}: it pools {size} to {wanted} with windows of several sizes, "
            "which ONNX has no operator for"
        )
    kernel = tuple(n // m for n, m in zip(size, wanted, strict=True))
    return writer.node("AveragePool", [writer.tensor(0)], kernel_shape=kernel, strides=kernel)


def _axes(writer: CallWriter) -> tuple[int, ...]:
    rank, given = writer.rank_of(0), writer.attrs.axis
    return tuple(sorted(axis % rank for axis in integers(range(rank) if given is None else given)))


def reduced(
    writer: CallWriter, operator: str, x: str, axes: tuple[int, ...], *, keeps: bool
) -> str:
    """Append a reduction along axes.

    Parameters
    ----------
    writer : CallWriter
    operator : str
        Of ONNX.
    x : str
    axes : tuple of int
    keeps : bool
        Keep the axes, with extent 1.
    """
    since = SUM_AXES_INPUT_OPSET if operator == "ReduceSum" else AXES_INPUT_OPSET
    if writer.opset >= since:
        return writer.node(operator, [x, writer.integers(axes, "axes")], keepdims=int(keeps))
    return writer.node(operator, [x], axes=axes, keepdims=int(keeps))


def _reduction(operator: str) -> Writer:
    return lambda writer: reduced(
        writer, operator, writer.tensor(0), _axes(writer), keeps=bool(writer.attrs.keepdims)
    )


def _mean(writer: CallWriter) -> str:
    """Write the mean over an image as what runtimes have an integer kernel for."""
    if writer.rank_of(0) == 4 and _axes(writer) == (2, 3) and bool(writer.attrs.keepdims):
        return writer.node("GlobalAveragePool", [writer.tensor(0)])
    keeps = bool(writer.attrs.keepdims)
    return reduced(writer, "ReduceMean", writer.tensor(0), _axes(writer), keeps=keeps)


def _arg_extreme(operator: str) -> Writer:
    def write(writer: CallWriter) -> str:
        x, axis, keep = writer.tensor(0), writer.attrs.axis, int(writer.attrs.keepdims)
        if axis is not None:
            return writer.node(operator, [x], axis=int(axis), keepdims=keep)
        flat = writer.node("Reshape", [x, writer.integers([-1], "shape")])
        return writer.reshaped(writer.node(operator, [flat], axis=0), extents_of(writer.call))

    return write


WINDOWS: dict[str, Writer] = {
    "relax.nn.max_pool2d": _max_pool2d,
    "relax.nn.avg_pool2d": _avg_pool2d,
    "relax.nn.adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "relax.mean": _mean,
    "relax.sum": _reduction("ReduceSum"),
    "relax.prod": _reduction("ReduceProd"),
    "relax.max": _reduction("ReduceMax"),
    "relax.min": _reduction("ReduceMin"),
    "relax.argmax": _arg_extreme("ArgMax"),
    "relax.argmin": _arg_extreme("ArgMin"),
}
