"""Operators that move numbers, join them or repeat them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tvmquant.export import shapes
from tvmquant.export.call_writer import CallWriter, Writer
from tvmquant.export.quantizers import write_rounding
from tvmquant.export.shapes import extents_of
from tvmquant.ir.tensor_types import integers

# What Slice takes for an end that is as far as it goes.
ENDLESS = 2**63 - 1
# Relax's names of what pads with a tensor's own values, and ONNX's.
PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
# The first opset with the mode wrap.
WRAP_OPSET = 19


def _reshape(writer: CallWriter) -> str:
    return writer.reshaped(writer.tensor(0), extents_of(writer.call))


def _broadcast_to(writer: CallWriter) -> str:
    source, wanted = extents_of(writer.call.args[0]), extents_of(writer.call)
    return writer.node(
        "Expand", [writer.tensor(0), shapes.broadcast_target(writer, source, wanted)]
    )


def _permute_dims(writer: CallWriter) -> str:
    axes = None if writer.attrs.axes is None else integers(writer.attrs.axes)
    return writer.node("Transpose", [writer.tensor(0)], perm=axes)


def _concat(writer: CallWriter) -> str:
    """Join tensors, and quantize the result where these have one scale.

    That changes nothing, but is what a runtime looks for that joins integers.
    """
    joined = writer.node("Concat", writer.tensors(), axis=int(writer.attrs.axis or 0) % writer.rank)
    held = writer.network.held(writer.var)
    if held is None or held.factors is not None:
        return joined
    return write_rounding(writer.builder, joined, held, f"{writer.name}/joined", clips=False)


def _split(writer: CallWriter) -> tuple[str, ...]:
    axis, where = int(writer.attrs.axis), writer.attrs.indices_or_sections
    extent = int(extents_of(writer.call.args[0])[axis])
    if shapes.is_known(where):  # as Relax does: the last part is the smaller one
        step = -(-extent // int(where))
        ends = [0, *range(step, extent, step), extent]
    else:
        ends = [0, *integers(where), extent]
    sizes = writer.integers([end - begin for begin, end in pairwise(ends)], "sizes")
    parts = writer.builder.node_of_many(
        "Split", [writer.tensor(0), sizes], writer.name, len(ends) - 1, axis=axis
    )
    return tuple(parts)


def _strided_slice(writer: CallWriter) -> str:
    axes, begins, ends, *strides = ([*arg.fields] for arg in writer.call.args[1:])
    operands = {
        "starts": begins,
        "ends": [end if shapes.is_known(end) else ENDLESS for end in ends],
        "axes": axes,
        "steps": strides[0] if strides else [1] * len(axes),
    }
    return writer.node(
        "Slice",
        [
            writer.tensor(0),
            *(writer.integers(integers(v), name) for name, v in operands.items()),
        ],
    )


def _flip(writer: CallWriter) -> str:
    backwards = {"starts": -1, "ends": -ENDLESS, "axes": int(writer.attrs.axis), "steps": -1}
    operands = [writer.integers([value], name) for name, value in backwards.items()]
    return writer.node("Slice", [writer.tensor(0), *operands])


def _take(writer: CallWriter) -> str:
    return writer.node(
        "Gather", [writer.tensor(0), writer.tensor(1)],
        axis=int(writer.attrs.axis or 0) % writer.rank_of(0),
    )  # fmt: skip


def _tile(writer: CallWriter) -> str:
    repeats = list(integers(writer.attrs.repeats))
    repeats = [1] * (writer.rank_of(0) - len(repeats)) + repeats
    return writer.node("Tile", [writer.tensor(0), writer.integers(repeats, "repeats")])


def _full(writer: CallWriter) -> str:
    shape = shapes.exact_shape(writer, extents_of(writer.call))
    return writer.node("Expand", [writer.tensor(1), shape])


def _pad(writer: CallWriter) -> str:
    widths = np.reshape(integers(writer.attrs.pad_width), (-1, 2))
    mode = str(writer.attrs.pad_mode)
    if mode == "circular" and writer.opset < WRAP_OPSET:
        return _wrapped(writer, widths)
    operands = [writer.tensor(0), writer.integers(widths.T.reshape(-1).tolist(), "pads")]
    if mode == "constant":
        operands.append(writer.number(_pad_value(writer)))
    return writer.node("Pad", operands, mode=PAD_MODES[mode])


def _pad_value(writer: CallWriter) -> float:
    """Return what is put beside a tensor: of one that is held, a number that its integers have."""
    value = float(writer.attrs.pad_value)
    held = writer.network.held(writer.call.args[0])
    if held is None:
        return value
    steps = int(held.format.round(np.asarray(value / held.scale + held.zero_point)))
    return float(np.float32(steps - held.zero_point) * np.float32(held.scale))


def _wrapped(writer: CallWriter, widths: Any) -> str:
    x = writer.tensor(0)
    for axis, (before, after) in enumerate(widths.tolist()):
        if before or after:
            extent = int(extents_of(writer.call.args[0])[axis])
            index = np.pad(np.arange(extent), (before, after), "wrap")
            x = writer.node("Gather", [x, writer.integers(index.tolist(), "index")], axis=axis)
    return x


MOVERS: dict[str, Writer] = {
    **dict.fromkeys(
        (
            "relax.reshape",
            "relax.flatten",
            "relax.nn.batch_flatten",
            "relax.squeeze",
            "relax.expand_dims",
        ),
        _reshape,
    ),
    "relax.broadcast_to": _broadcast_to,
    "relax.permute_dims": _permute_dims,
    "relax.concat": _concat,
    "relax.split": _split,
    "relax.strided_slice": _strided_slice,
    "relax.take": _take,
    "relax.flip": _flip,
    "relax.tile": _tile,
    "relax.full": _full,
    "relax.nn.pad": _pad,
}
