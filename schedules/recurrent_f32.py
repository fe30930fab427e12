"""The recurrence of LSTM, GRU and plain RNN layers in float32, all steps in one kernel.

Strategy: 1. steps run one after the other, samples beside each other in parallel, or, of a single
sample, the blocks of a step where reading the weights takes longer than a fork; 2. the product of
the hidden state with the weights sums into several registers for a block of outputs, so that a
value of the state is loaded once for all of them and additions do not wait for each other; the last
block ends with the row and computes some outputs twice; 3. the gates' functions run over the
finished row. The state lives in the result: a step reads the row before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)

from tvmquant.machine import Machine
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import PARALLEL_BYTES, overlapping_lanes

# vectors that a block of outputs is summed in
ACCUMULATORS = 4


@dataclass(frozen=True)
class RecurrentSpec:
    """A recurrence; the arguments are ``(x, weight, bias, hidden, cell, output)``.

    Parameters
    ----------
    steps, batch, hidden : int
    kind : {"LSTM", "GRU", "RNN"}
    reverse : bool
        Run from the last step to the first.
    reset_first : bool
        A GRU multiplies its state by the reset gate before its weights, not behind.
    activation : {"Tanh", "Relu"}
        Of the RNN.
    state : {"hidden", "cell"}
        What to return of every step.
    states : int
        Samples that the initial states hold: the batch, or 1 for the same in all.
    """

    steps: int
    batch: int
    hidden: int
    kind: str
    reverse: bool = False
    reset_first: bool = False
    activation: str = "Tanh"
    state: str = "hidden"
    states: int = 1


def _sigmoid(x: Any) -> Any:
    return T.float32(1) / (T.float32(1) + T.exp(-x))


def kernel(spec: RecurrentSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the kernel for a machine."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[spec.kind]
    steps, batch, size, states = spec.steps, spec.batch, spec.hidden, spec.states
    width = gates * size
    lanes = overlapping_lanes(size, ACCUMULATORS * vector_bits(machine.target) // 32)
    blocks = -(-size // lanes)
    resets_first = spec.kind == "GRU" and spec.reset_first
    at_once = 2 if resets_first else gates  # gates that read the state as it is
    last, sign = (steps - 1, -1) if spec.reverse else (0, 1)
    shares_samples = machine.threads > 1 and batch > 1
    shares_steps = machine.threads > 1 and batch == 1 and 4 * size * width >= PARALLEL_BYTES

    def samples() -> Any:
        return T.parallel(batch) if shares_samples else T.serial(batch)

    def units() -> Any:
        """Return the loop over the blocks of all gates that read the state."""
        count = at_once * blocks
        return T.parallel(count) if shares_steps else T.serial(count)

    def first(unit: Any) -> Any:
        """Return the first output of a block; the last one ends with its gate."""
        return unit // blocks * size + T.min(unit % blocks * lanes, size - lanes)

    def next_cell(x: Any, row: Any, c: Any, at: tuple[Any, Any], i: Any) -> Any:
        """Return the cell of an LSTM behind a step."""
        _, _, forget, new = (x[(*at, g * size + i)] + row[g * size + i] for g in range(4))
        keep = _sigmoid(x[(*at, i)] + row[i])
        return _sigmoid(forget) * c[i] + keep * T.tanh(new)

    def next_hidden(x: Any, row: Any, h: Any, c: Any, at: tuple[Any, Any], i: Any) -> Any:
        """Return the hidden state behind a step, of which an LSTM's cell is known."""
        gate = [x[(*at, g * size + i)] + row[g * size + i] for g in range(gates)]
        if spec.kind == "LSTM":
            return _sigmoid(gate[1]) * T.tanh(c[i])
        if spec.kind == "GRU":
            update, new = _sigmoid(gate[0]), gate[2]
            if not resets_first:
                new = x[(*at, 2 * size + i)] + _sigmoid(gate[1]) * row[2 * size + i]
            return (T.float32(1) - update) * T.tanh(new) + update * h[i]
        return T.max(gate[0], T.float32(0)) if spec.activation == "Relu" else T.tanh(gate[0])

    @T.prim_func(s_tir=True)
    def recurrence(
        x: T.Buffer((steps, batch, width), "float32"),
        weight: T.Buffer((size, width), "float32"),
        bias: T.Buffer((width,), "float32"),
        hidden: T.Buffer((states, size), "float32"),
        cell: T.Buffer((states, size), "float32"),
        out: T.Buffer((steps, batch, size), "float32"),
    ) -> None:
        for sample in samples():
            with T.sblock("sample"):
                n = T.axis.spatial(batch, sample)
                T.reads(x[0:steps, n, 0:width], weight[0:size, 0:width], bias[0:width],
                        hidden[0:states, 0:size], cell[0:states, 0:size])  # fmt: skip
                T.writes(out[0:steps, n, 0:size])
                h = T.sblock_alloc_buffer((size,), "float32")
                c = T.sblock_alloc_buffer((size,), "float32")
                kept = T.sblock_alloc_buffer((size,), "float32")
                row = T.sblock_alloc_buffer((width,), "float32")
                kept_total = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                for i in range(size):
                    h[i] = hidden[n % states, i]
                    c[i] = cell[n % states, i]
                for time in range(steps):
                    for unit in units():
                        with T.sblock("gates"):
                            u = T.axis.spatial(at_once * blocks, unit)
                            T.reads(weight[0:size, 0:width], bias[0:width], h[0:size])
                            T.writes(row[0:width])
                            total = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                            for lane in T.vectorized(lanes):
                                total[lane] = bias[first(u) + lane]
                            for k in range(size):
                                for lane in T.vectorized(lanes):
                                    total[lane] = total[lane] + h[k] * weight[k, first(u) + lane]
                            for lane in T.vectorized(lanes):
                                row[first(u) + lane] = total[lane]
                    if resets_first:
                        for i in range(size):
                            kept[i] = h[i] * _sigmoid(
                                x[last + sign * time, n, size + i] + row[size + i]
                            )
                        for block in range(blocks):
                            for lane in T.vectorized(lanes):
                                kept_total[lane] = bias[
                                    2 * size + T.min(block * lanes, size - lanes) + lane
                                ]
                            for k in range(size):
                                for lane in T.vectorized(lanes):
                                    kept_total[lane] = (
                                        kept_total[lane]
                                        + kept[k]
                                        * weight[
                                            k, 2 * size + T.min(block * lanes, size - lanes) + lane
                                        ]
                                    )
                            for lane in T.vectorized(lanes):
                                row[2 * size + T.min(block * lanes, size - lanes) + lane] = (
                                    kept_total[lane]
                                )
                    for i in range(size):
                        if spec.kind == "LSTM":
                            c[i] = next_cell(x, row, c, (last + sign * time, n), i)
                        h[i] = next_hidden(x, row, h, c, (last + sign * time, n), i)
                        out[last + sign * time, n, i] = c[i] if spec.state == "cell" else h[i]

    return with_facts(recurrence, f"{spec.kind.lower()}_f32", spec.kind.lower())
