"""Quantizers of QONNX, as Brevitas writes them: float tensors rounded to levels of any width.

``Quant`` computes ``q = clip(round(x / scale + zero_point), low, high)`` and gives
``(q - zero_point) * scale``. QuantizeLinear rounds before it adds the zero point: where that is
odd, activations that lie on a tie exactly come out one step apart. Constants are rounded here, as
``Quant`` does it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvmquant.frontend.dialects.draft import Draft
from tvmquant.frontend.dialects.levels import (
    MOST_CONSTANT_BITS,
    Grid,
    Levels,
    write_constant,
    write_rounded,
)
from tvmquant.frontend.dialects.parameters import scale_fault
from tvmquant.frontend.dialects.registry import rewriting
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.node import Node

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")

_NEAREST = ("ROUND", "HALF_EVEN")
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.round,
    "HALF_EVEN": np.round,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.copysign(np.ceil(np.abs(x)), x),
    "DOWN": np.trunc,
    "HALF_UP": lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x),
    "HALF_DOWN": lambda x: np.copysign(np.ceil(np.abs(x) - 0.5), x),
}


def names(*op_types: str) -> list[str]:
    """Return operators with each of the domains that they have had."""
    return [f"{domain}.{op_type}" for domain in DOMAINS for op_type in op_types]


@rewriting(*names("Quant", "IntQuant"), fewest=4, most=4)
def _write_quant(draft: Draft, node: Node) -> None:
    x, *_ = node.inputs
    grid = read_grid(draft, node)
    bits = read_bits(draft, node, 3)
    signed, narrow = bool(node.integer("signed", 1)), bool(node.integer("narrow", 0))
    if bits == 1 and signed:
        if np.any(grid.zero_point):
            raise UnsupportedNodeError("it has 1 bit, a sign and a zero point, expected none")
        _write_signs(draft, node, grid)
        return
    levels = Levels.of(bits, signed=signed, narrow=narrow)
    if levels.low >= levels.high:
        raise UnsupportedNodeError(f"its only level is {levels.low}, expected at least 2 bits")
    mode = node.text("rounding_mode", "ROUND").upper()
    if mode not in _ROUNDINGS:
        known = ", ".join(_ROUNDINGS)
        raise UnsupportedNodeError(f"rounding_mode={mode!r}, expected one of {known}")
    array = finite_constant(draft, x)
    if array is not None:
        steps = array / grid.scale + grid.zero_point.astype(np.float32)
        rounded = _ROUNDINGS[mode](np.clip(steps, levels.low, levels.high))
        # float32 has no 2^31 - 1
        integers = np.clip(rounded.astype(np.int64), levels.low, levels.high)
        write_constant(draft, integers, grid, node.name, node.outputs[0])
        return
    if mode not in _NEAREST:
        raise UnsupportedNodeError(
            f"it rounds activations with rounding_mode={mode!r}, expected ROUND; train or export "
            "the model with that"
        )
    write_rounded(draft, x, levels, grid, node.name, node.outputs[0])


@rewriting(*names("BipolarQuant"), fewest=2, most=2)
def _write_bipolar(draft: Draft, node: Node) -> None:
    scale = known_scale(draft, node.inputs[1])
    _write_signs(draft, node, Grid(scale, np.zeros(scale.shape, np.int64)))


def _write_signs(draft: Draft, node: Node, grid: Grid) -> None:
    """Write -scale for numbers below 0, and scale for others, 0 among them."""
    array = finite_constant(draft, node.inputs[0])
    if array is not None:
        signs = np.where(array >= 0, np.int64(1), np.int64(-1))
        write_constant(draft, signs, grid, node.name, node.outputs[0])
        return
    zero = draft.constant(f"{node.name}/zero", np.zeros((), np.float32))
    choices = [
        draft.constant(f"{node.name}/{side}", scale)
        for side, scale in (("above", grid.scale), ("below", -grid.scale))
    ]
    condition = draft.emit("GreaterOrEqual", [node.inputs[0], zero], f"{node.name}/GreaterOrEqual")
    draft.emit("Where", [condition, *choices], node.name, output=node.outputs[0])


@rewriting(*names("FloatQuant"), fewest=1, most=2**31)
def _refuse_float_quant(draft: Draft, node: Node) -> None:
    raise UnsupportedNodeError(
        "it rounds to floating-point numbers of few bits, expected integers; train the model with "
        "integer quantizers"
    )


def read_grid(draft: Draft, node: Node) -> Grid:
    """Return the scales and zero points of a quantizer, its inputs 1 and 2.

    Raises
    ------
    UnsupportedNodeError
        If they are not known, not valid, or a zero point is no integer.
    """
    scale = known_scale(draft, node.inputs[1])
    zero_point = draft.known.array(node.inputs[2])
    if zero_point is None:
        raise UnsupportedNodeError(
            f"its zero point {node.inputs[2]!r} is computed at run time; export it as a constant"
        )
    rounded = np.round(zero_point.astype(np.float64))
    if not np.array_equal(rounded, zero_point) or np.abs(rounded).max(initial=0) >= 2**31:
        raise UnsupportedNodeError(
            f"its zero point {node.inputs[2]!r} is {_some(zero_point)}, expected an integer"
        )
    try:
        scale, rounded = np.broadcast_arrays(scale, rounded)
    except ValueError:
        raise UnsupportedNodeError(
            f"its scale has shape {scale.shape} and its zero point {zero_point.shape}, expected "
            "shapes that broadcast"
        ) from None
    return Grid(np.array(scale), rounded.astype(np.int64))


def known_scale(draft: Draft, name: str) -> Array:
    """Return scales that are constant, as float32.

    Raises
    ------
    UnsupportedNodeError
        If they are not, or not valid.
    """
    scale = draft.known.array(name)
    if scale is None:
        raise UnsupportedNodeError(
            f"its scale {name!r} is computed at run time; export it as a constant"
        )
    fault = scale_fault(scale, name)
    if fault is not None:
        raise UnsupportedNodeError(fault)
    return scale.astype(np.float32)


def read_bits(draft: Draft, node: Node, index: int) -> int:
    """Return a bit width, a constant input of a node.

    Raises
    ------
    UnsupportedNodeError
        If it is not one constant integer from 1 to 32.
    """
    name = node.inputs[index]
    bits = draft.known.array(name)
    if bits is None or bits.size != 1:
        found = "computed at run time" if bits is None else f"of shape {bits.shape}"
        raise UnsupportedNodeError(f"its bit width {name!r} is {found}, expected one constant")
    width = float(bits.reshape(()))
    if not 1 <= width <= MOST_CONSTANT_BITS or width != int(width):
        raise UnsupportedNodeError(
            f"its bit width {name!r} is {width:g}, expected an integer from 1 to "
            f"{MOST_CONSTANT_BITS}"
        )
    return int(width)


def finite_constant(draft: Draft, name: str) -> Array | None:
    """Return what a quantizer reads as float32, None if that is computed at run time.

    Raises
    ------
    UnsupportedNodeError
        If it holds NaN or infinities, which have no integer.
    """
    array = draft.known.array(name)
    if array is None:
        return None
    if not np.isfinite(array).all():
        raise UnsupportedNodeError(
            f"constant {name!r} holds NaN or infinite values; check the training or the export"
        )
    return array.astype(np.float32)


def _some(array: Array) -> str:
    return f"{array.reshape(-1)[0]:g}" if array.size == 1 else "an array with fractions"
