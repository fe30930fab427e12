"""The torch function of a recurrence (see `tvmquant.passes.recurrent`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tvm import relax

from tvmquant.ir import quantized_ops as qop


def recurrent(call: relax.Call) -> Callable[..., Tensor]:
    """Return the function of a call."""
    attrs = qop.attributes(call)
    kind, resets_first = attrs["kind"], bool(attrs["reset_first"])
    activation = torch.relu if attrs["activation"] == "Relu" else torch.tanh

    def step(x: Tensor, h: Tensor, c: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        rows = h @ w + b
        if kind == "RNN":
            return activation(x + rows), c
        if kind == "LSTM":
            i, o, f, g = (x + rows).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c
        size = h.shape[-1]
        z, r = torch.sigmoid(x[:, : 2 * size] + rows[:, : 2 * size]).chunk(2, -1)
        new = x[:, 2 * size :]
        if resets_first:
            new = new + (r * h) @ w[:, 2 * size :] + b[2 * size :]
        else:
            new = new + r * rows[:, 2 * size :]
        return (1 - z) * torch.tanh(new) + z * h, c

    def run(x: Tensor, w: Tensor, b: Tensor, h: Tensor, c: Tensor) -> Tensor:
        h, c = (state.expand(x.shape[1], -1) for state in (h, c))
        order = range(len(x) - 1, -1, -1) if attrs["reverse"] else range(len(x))
        states: list[Tensor] = [h] * len(x)
        for at in order:
            h, c = step(x[at], h, c, w, b)
            states[at] = c if attrs["state"] == "cell" else h
        return torch.stack(states)

    return run
