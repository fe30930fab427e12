"""Truncation of QONNX, by which Brevitas ends average pools: integers that lose low bits.

``Trunc`` gives ``floor(k / 2^t)`` of integers ``k = round(x / scale)``. No ``k / 2^t - 1/2`` of an
integer moved up by half a step of k lies on a tie, so that with rounding to the nearest ::

    floor(k / 2^t) = round((x / scale + 1/2) / 2^t - 1/2)

for every x within half a step of an integer: one QuantizeLinear of
``x + (1/2 - 2^(t-1)) * scale``. Rounding up is the same with the opposite sign; rounding to the
nearest needs no shift, and its ties are those of k / 2^t.
"""

from __future__ import annotations

import numpy as np

from tvmquant.frontend.dialects.draft import Draft
from tvmquant.frontend.dialects.levels import Grid, Levels, write_rounded
from tvmquant.frontend.dialects.qonnx import known_scale, names, read_bits, read_grid
from tvmquant.frontend.dialects.registry import rewriting
from tvmquant.frontend.dialects.value_types import MOVERS
from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node

# In steps of half of what is truncated.
_SHIFTS = {"FLOOR": 1, "CEIL": -1, "ROUND": 0}
# The first version has two bit widths, the second output scale and, in between, zero point.
_FIRST, _MOST = 5, 7


@rewriting(*names("Trunc"), fewest=_FIRST, most=_MOST)
def _write_trunc(draft: Draft, node: Node) -> None:
    grid = read_grid(draft, node)
    mode = node.text("rounding_mode", "FLOOR").upper()
    if grid.scale.size != 1 or np.any(grid.zero_point):
        raise UnsupportedNodeError("it truncates integers of several scales or with a zero point")
    if mode not in _SHIFTS:
        known = ", ".join(_SHIFTS)
        raise UnsupportedNodeError(f"rounding_mode={mode!r}, expected one of {known}")
    scale = float(grid.scale.reshape(()))
    out_bits = read_bits(draft, node, len(node.inputs) - 1)
    real = node.inputs[0]
    if len(node.inputs) == _FIRST:
        lost = read_bits(draft, node, 3) - out_bits
        levels = _levels(draft, real, out_bits)
    else:
        out_scale = known_scale(draft, node.inputs[4])
        if len(node.inputs) == _MOST and np.any(draft.known.array(node.inputs[5]) != 0):
            raise UnsupportedNodeError("its output has a zero point, expected 0 as its input has")
        lost = int(np.round(np.log2(float(out_scale.reshape(-1)[0]) / scale)))
        signed, narrow = bool(node.integer("signed", 1)), bool(node.integer("narrow", 0))
        levels = Levels.of(out_bits, signed=signed, narrow=narrow)
    if lost < 0:
        raise UnsupportedNodeError(f"it truncates {lost} bits, expected a number >= 0")
    shift = _SHIFTS[mode] * (0.5 - 2.0 ** (lost - 1)) * scale
    if shift:
        constant = draft.constant(f"{node.name}/shift", np.array(shift, np.float32))
        real = draft.emit("Add", [real, constant], f"{node.name}/Add")
    if len(node.inputs) == _FIRST:  # its result has the scale of its input
        factor = draft.constant(f"{node.name}/factor", np.array(2.0**-lost, np.float32))
        real = draft.emit("Mul", [real, factor], f"{node.name}/Mul")
    else:
        if not np.all(out_scale == np.float32(scale * 2.0**lost)):
            raise UnsupportedNodeError(
                f"its scales are {scale:g} and {out_scale.reshape(-1)[0]:g}, expected a power of "
                "two between them"
            )
        grid = Grid(out_scale.reshape(()), grid.zero_point.reshape(()))
    write_rounded(draft, real, levels, grid, node.name, node.outputs[0])


def _levels(draft: Draft, name: str, bits: int) -> Levels:
    """Return levels that a truncated tensor needs, whose sign the first version does not tell."""
    node = draft.known.producer(name)
    while node is not None:
        if node.op_type == "Relu" or (
            node.op_type == "DequantizeLinear" and _is_unsigned(draft, node)
        ):
            return Levels.of(bits, signed=False, narrow=False)
        if node.op_type == "Mul":
            factors = [draft.known.array(each) for each in node.inputs]
            known = [index for index, array in enumerate(factors) if array is not None]
            if len(known) != 1 or np.any(factors[known[0]] < 0):  # type: ignore[operator]
                break
            node = draft.known.producer(node.inputs[1 - known[0]])
        elif node.op_type in MOVERS or node.op_type in ("AveragePool", "GlobalAveragePool"):
            node = draft.known.producer(node.inputs[0])
        else:
            break
    return Levels(-(2 ** (bits - 1)), 2**bits - 1)


def _is_unsigned(draft: Draft, node: Node) -> bool:
    """Whether a DequantizeLinear gives numbers >= 0."""
    dtype = draft.type_of(node.inputs[0])
    zero_point = draft.known.array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
    is_zero = zero_point is not None and not np.any(zero_point.astype(np.int64))
    return dtype is not None and dtype.name.startswith("u") and is_zero
