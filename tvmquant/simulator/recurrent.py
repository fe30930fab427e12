"""The float recurrence of recurrent layers (see `tvmquant.passes.recurrent`)."""

from __future__ import annotations

import numpy as np

from tvmquant.arithmetic import Array
from tvmquant.passes.recurrent import RECURRENT
from tvmquant.simulator.calls import OpCall, Operator


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the limit 0
        result: Array = 1 / (1 + np.exp(-x))
    return result


def recurrent(call: OpCall) -> Array:
    """Run all steps and return the hidden state, or the cell, of each."""
    x, weight, _, h, c = call.args
    steps, batch, _ = x.shape
    h, c = (np.broadcast_to(state, (batch, len(weight))) for state in (h, c))
    result = np.empty((steps, batch, len(weight)), np.float32)
    for at in range(steps)[:: -1 if call.attrs["reverse"] else 1]:
        h, c = _step(call, x[at], h, c)
        result[at] = c if call.attrs["state"] == "cell" else h
    return result


def _step(call: OpCall, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    _, weight, bias, *_ = call.args
    rows, size = h @ weight + bias, h.shape[-1]
    if call.attrs["kind"] == "LSTM":
        i, o, f, g = np.split(x + rows, 4, axis=-1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        return _sigmoid(o) * np.tanh(c), c
    if call.attrs["kind"] == "GRU":
        z, r = np.split(_sigmoid(x[:, : 2 * size] + rows[:, : 2 * size]), 2, axis=-1)
        inner = r * rows[:, 2 * size :]
        if call.attrs["reset_first"]:
            inner = (r * h) @ weight[:, 2 * size :] + bias[2 * size :]
        new = np.tanh(x[:, 2 * size :] + inner)
        return (1 - z) * new + z * h, c
    total = x + rows
    return np.maximum(total, 0) if call.attrs["activation"] == "Relu" else np.tanh(total), c


RECURRENT_OPS: dict[str, Operator] = {RECURRENT: recurrent}
