"""The recurrence of an LSTM, GRU or RNN (`tvmquant.passes.recurrent`) as ONNX's operator.

That multiplies its input by a weight first. Here the input has been: the product of all steps is a
layer of its own, in integers. So the weight is the identity, which leaves every number as it is.
"""

from __future__ import annotations

import numpy as np

from tvmquant.export.call_writer import CallWriter, Writer
from tvmquant.export.shapes import extents_of
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.recurrent import RECURRENT


def _recurrent(writer: CallWriter) -> str:
    attrs = qop.attributes(writer.call)
    kind, size = attrs["kind"], int(extents_of(writer.call)[-1])
    weight, bias = writer.array(1), writer.array(2)
    gates = weight.shape[1]
    recurrent_bias = np.concatenate([np.zeros_like(bias), bias])[None]
    operands = [
        writer.tensor(0),
        writer.constant(np.eye(gates, dtype=np.float32)[None], "identity"),
        writer.constant(np.ascontiguousarray(weight.T)[None], "recurrence"),
        writer.constant(recurrent_bias, "bias"),
        "",
        _state(writer, 3),
        *([_state(writer, 4)] if kind == "LSTM" else []),
    ]
    given = {
        "hidden_size": size,
        "direction": "reverse" if attrs["reverse"] else "forward",
        "activations": [attrs["activation"]] if kind == "RNN" else None,
        "linear_before_reset": 1 - attrs["reset_first"] if kind == "GRU" else None,
    }
    outputs = writer.builder.node_of_many(
        kind, operands, writer.name, 3 if kind == "LSTM" else 2, **given
    )
    if attrs["state"] == "cell":
        # of the cell's states the last is known, and no other is read
        steps = writer.integers([int(extents_of(writer.call)[0]), 1, 1], "steps")
        return writer.node("Expand", [outputs[2], steps])
    return writer.node("Squeeze", [outputs[0], writer.integers([1], "direction")])


def _state(writer: CallWriter, index: int) -> str:
    """Return the state before the first step, (1, N, H); nothing where it is 0."""
    array = writer.array(index)
    if array is not None and not array.any():
        return ""
    return writer.node("Unsqueeze", [writer.tensor(index), writer.integers([0], "direction")])


RECURRENCES: dict[str, Writer] = {RECURRENT: _recurrent}
