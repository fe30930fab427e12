"""The float operator of a recurrent layer's recurrence (L0 to L2).

``recurrent(x, weight, bias, hidden, cell) {kind, reverse, reset_first, activation, state}``: what
an LSTM, a GRU or a plain RNN computes from its projected inputs. The projection of all steps is one
matrix product in front of it, which becomes integers as any dense layer does; the recurrence, in
which every step reads the one before, stays float.

=========== ================================================================================
x           (T, N, G * H): the projection of each step, its bias and, but for the last gate of
            a GRU that resets later, that of the recurrence included
weight      (H, G * H): of the previous hidden state
bias        (G * H,): added to ``hidden @ weight``
hidden      (N, H) or (1, H): the state before the first step
cell        the same, of an LSTM
result      (T, N, H): the hidden state of each step, or the cell (``state``), in the order of
            time; ``reverse`` runs from the last step to the first
=========== ================================================================================

Gates lie in ONNX's order: input, output, forget, cell (LSTM, G = 4); update, reset, hidden (GRU,
G = 3); G = 1 for the RNN. With ``s`` the logistic function::

    LSTM: c' = s(f) * c + s(i) * tanh(g); h' = s(o) * tanh(c')
    GRU:  h' = (1 - s(z)) * n + s(z) * h
          n = tanh(x_n + (s(r) * h) @ W_n + b_n), or with ``reset_first`` = 0
          n = tanh(x_n + s(r) * (h @ W_n + b_n))
    RNN:  h' = activation(x + h @ W + b)

References: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; Cho et al., Learning Phrase
Representations using RNN Encoder-Decoder, 2014.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.ir import Op

from tvmquant.ir.quantized_ops import register

# not among those of `quantized_ops`, by which an integer graph is known
RECURRENT = "relax.nn.recurrent"
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr,
    hidden: relax.Expr,
    cell: relax.Expr,
    *,
    kind: str,
    reverse: bool = False,
    reset_first: bool = False,
    activation: str = "Tanh",
    state: str = "hidden",
) -> relax.Call:
    """Return a call of the operator, see the module's description."""
    attrs = {
        "kind": kind,
        "reverse": int(reverse),
        "reset_first": int(reset_first),
        "activation": activation,
        "state": state,
    }
    return relax.Call(
        Op.get(RECURRENT),
        [x, weight, bias, hidden, cell],
        tvm.ir.make_node("ir.DictAttrs", **attrs),
    )


def _infer(call: relax.Call, _ctx: Any) -> relax.TensorType:
    steps, batch, _ = call.args[0].ty.shape.values
    return relax.TensorType([steps, batch, call.args[1].ty.shape.values[0]], "float32")


register(RECURRENT, ("x", "weight", "bias", "hidden", "cell"), _infer)
