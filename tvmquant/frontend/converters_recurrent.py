"""LSTM, GRU and RNN: the projection of all steps as a matrix product, then the recurrence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Array, Batch, UnsupportedNodeError, show
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.recurrent import GATES, recurrent


@dataclass(frozen=True)
class _Direction:
    """Constants of one direction: (G * H, I), (G * H, H) and biases (G * H,)."""

    weight: Array
    recurrence: Array
    bias: Array
    recurrent_bias: Array
    reverse: bool


def _directions(ctx: Context, node: Node) -> list[_Direction]:
    weights, recurrences = ctx.weight(1), ctx.weight(2)
    size, gates = recurrences.shape[-1], GATES[node.op_type]
    name = node.text("direction", "forward")
    reversed_ = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}.get(name)
    if reversed_ is None or weights.shape[:2] != (len(reversed_), gates * size):
        raise UnsupportedNodeError(
            f"its direction is {name!r} and its weight has shape {weights.shape}, which differ"
        )
    biases = np.zeros((len(reversed_), 2 * gates * size), np.float32)
    if ctx.value(3) is not None:
        biases = ctx.weight(3)
    if recurrences.shape[1] != gates * size or biases.shape[1] != 2 * gates * size:
        raise UnsupportedNodeError(
            f"its weights have shapes {recurrences.shape} and {biases.shape}, expected {gates} "
            f"gates of {size}"
        )
    halves = np.split(biases, 2, axis=1)
    return [
        _Direction(weights[d], recurrences[d], halves[0][d], halves[1][d], reverse)
        for d, reverse in enumerate(reversed_)
    ]


@converter("LSTM", "GRU", "RNN")
def _convert_recurrent(ctx: Context, node: Node) -> tuple[relax.Var, ...]:
    kind, batch_first = node.op_type, node.integer("layout", 0) == 1
    data = ctx.tensor(0)
    if len(ctx.shape(data)) != 3:
        raise UnsupportedNodeError(f"its input has shape {show(ctx.shape(data))}, expected 3-D")
    if not batch_first:  # a layer reads the batch first
        data = ctx.emit(relax.op.permute_dims(data, [1, 0, 2]))
    batch, steps, _ = ctx.shape(data)
    if isinstance(steps, Batch):
        raise UnsupportedNodeError("its number of steps depends on the batch size")
    ctx.keep_batch(ctx.shape(data), [1])
    if ctx.value(4) is not None:
        lengths = ctx.weight(4)
        if not np.all(lengths == steps):
            raise UnsupportedNodeError(
                f"its sequences are {lengths.tolist()} of {steps} steps long"
            )
    directions = _directions(ctx, node)
    size = directions[0].recurrence.shape[1]
    resets_first = kind == "GRU" and not node.integer("linear_before_reset", 0)
    outputs: dict[str, list[relax.Var]] = {"hidden": [], "cell": []}
    for index, direction in enumerate(directions):
        inside = direction.bias + direction.recurrent_bias
        apart = np.zeros_like(inside)
        if kind == "GRU" and not resets_first:  # the reset gate multiplies this one's too
            inside[2 * size :] = direction.bias[2 * size :]
            apart[2 * size :] = direction.recurrent_bias[2 * size :]
        projected = ctx.emit(relax.op.matmul(data, ctx.embed(direction.weight.T)))
        projected = ctx.emit(relax.op.add(projected, ctx.embed(inside)))
        projected = ctx.emit(relax.op.permute_dims(projected, [1, 0, 2]))
        states = [_initial(ctx, i, index, size, batch_first) for i in (5, 6)]
        constants = ctx.embed(direction.recurrence.T), ctx.embed(apart)
        for state in ["hidden", "cell"] if kind == "LSTM" else ["hidden"]:
            call = recurrent(
                projected, *constants, *states, kind=kind, reverse=direction.reverse,
                reset_first=resets_first, activation=_activation(node), state=state,
            )  # fmt: skip
            outputs[state].append(ctx.emit(call))
    rows = [ctx.reshape(h, (steps, 1, batch, size)) for h in outputs["hidden"]]
    sequence = rows[0] if len(rows) == 1 else ctx.emit(relax.op.concat(rows, 1))
    if batch_first:
        sequence = ctx.emit(relax.op.permute_dims(sequence, [2, 0, 1, 3]))
    ends = [
        _last(ctx, outputs[state], directions, batch_first)
        for state in ("hidden", "cell")
        if outputs[state]
    ]
    return (sequence, *ends)


def _activation(node: Node) -> str:
    names = node.attributes.get("activations", [])
    first = names[0] if names and node.op_type == "RNN" else "Tanh"
    return (first if isinstance(first, str) else first.decode()).title()


def _initial(ctx: Context, index: int, direction: int, size: int, batch_first: bool) -> relax.Expr:
    """Return the state of one direction before the first step, (N, H), or (1, H) of zeros."""
    value = ctx.value(index) if len(ctx.node.inputs) > index else None
    if value is None or _is_zero(ctx, ctx.tensor(index)):
        return ctx.embed(np.zeros((1, size), np.float32))
    state = ctx.tensor(index)
    axis = 1 if batch_first else 0
    part = relax.op.strided_slice(state, [axis], [direction], [direction + 1])
    batch = ctx.shape(state)[1 - axis]
    return ctx.reshape(ctx.emit(part), (batch, size))


def _is_zero(ctx: Context, value: relax.Expr) -> bool:
    """Whether a tensor holds zeros only: a constant, or one in the shape of the batch."""
    array = qop.constant_array(value)
    if array is not None:
        return not np.any(array)
    made = ctx.builder.lookup_binding(value) if isinstance(value, relax.Var) else None
    if qop.is_call(made, "relax.full"):
        return _is_zero(ctx, made.args[1])
    moved = ("relax.broadcast_to", "relax.reshape", "relax.permute_dims", "relax.strided_slice")
    return qop.is_call(made, *moved) and _is_zero(ctx, made.args[0])


def _last(
    ctx: Context, states: list[relax.Var], directions: list[_Direction], batch_first: bool
) -> relax.Var:
    """Return the states behind the last step of each direction, (D, N, H) or (N, D, H)."""
    ends = []
    for state, direction in zip(states, directions, strict=True):
        steps, batch, size = ctx.shape(state)
        at = 0 if direction.reverse else int(str(steps)) - 1
        end = ctx.emit(relax.op.strided_slice(state, [0], [at], [at + 1]))
        ends.append(ctx.reshape(end, (batch, 1, size) if batch_first else (1, batch, size)))
    axis = 1 if batch_first else 0
    return ends[0] if len(ends) == 1 else ctx.emit(relax.op.concat(ends, axis))
