"""Constants that a file stores as integers behind DequantizeLinear, and what moves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tvmquant.formats import GROUP_LEVELS, GROUP_SIZES
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.fold import evaluate_constant
from tvmquant.frontend.node import Node

# Operators that leave the values of their first input as they are.
_NAMES = """
Cast CastLike Concat DepthToSpace Dropout Expand Flatten Gather GlobalMaxPool Identity MaxPool
ReduceMax ReduceMin Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze
"""
MOVERS = frozenset(_NAMES.split())
# of a weight that is wider than this nothing is kept
MOST_BITS = 8


@dataclass(frozen=True)
class StoredIntegers:
    """Integers of real value ``(levels - zero_point) * scale``.

    Parameters
    ----------
    levels : int array
    scale : float32 array of the same shape
    zero_point : int array of the same shape
    block : int
        How many neighbours along an axis share a scale; 0 where not in blocks.
    """

    levels: Array
    scale: Array
    zero_point: Array
    block: int = 0

    def mapped(self, function: Callable[[Array], Array]) -> StoredIntegers:
        """Return what a function that moves values makes of each array."""
        levels, scale, zero_point = map(function, (self.levels, self.scale, self.zero_point))
        return StoredIntegers(levels, scale, zero_point, self.block)

    def along(self, axis: int) -> tuple[Array, Array] | None:
        """Return scale and zero point of each channel, or one of each.

        Returns
        -------
        (float32 array, int array), or None where they differ within a channel, as those of blocks
        do
        """
        scale, zero_point = _along(self.scale, axis), _along(self.zero_point, axis)
        if scale is None or zero_point is None:
            return None
        scale, zero_point = np.broadcast_arrays(scale, zero_point)
        return np.array(scale), np.array(zero_point)

    def grouped(self, axis: int) -> tuple[Array, Array] | None:
        """Return the scale of each channel, and the multipliers of its blocks.

        Returns
        -------
        (float32 array of shape (C,), int8 array like levels), or None where the scales of a
        channel's blocks are no multiples of 1/`GROUP_LEVELS` of the greatest
        """
        if self.block not in GROUP_SIZES or np.any(self.zero_point):
            return None
        others = tuple(i for i in range(self.scale.ndim) if i != axis % self.scale.ndim)
        scale = self.scale.max(axis=others, keepdims=True) / np.float32(GROUP_LEVELS)
        ratio = self.scale / scale
        multiplier = np.rint(ratio)
        if np.any(np.abs(ratio - multiplier) > 1e-4) or np.any(multiplier < 1):
            return None
        return scale.reshape(-1), multiplier.astype(np.int8)


def stored_by(node: Node, inputs: list[Array | None]) -> StoredIntegers | None:
    """Return what a DequantizeLinear of constants stores; None of other nodes and wide integers.

    Parameters
    ----------
    node : Node
    inputs : list of arrays
    """
    if node.op_type != "DequantizeLinear" or inputs[0] is None or inputs[1] is None:
        return None
    name = inputs[0].dtype.name
    if "int" not in name or int(name.removeprefix("u").removeprefix("int")) > MOST_BITS:
        return None
    levels = inputs[0].astype(np.int32)
    zero = inputs[2] if len(inputs) > 2 else None
    zero = np.zeros(1, np.int32) if zero is None else zero.astype(np.int32)
    scale = inputs[1].astype(np.float32)
    scale, zero = (per_value(array, levels.shape, node) for array in (scale, zero))
    return StoredIntegers(levels, scale, zero, node.integer("block_size", 0))


def moved_by(
    node: Node, stored: StoredIntegers, inputs: list[Array | None]
) -> StoredIntegers | None:
    """Return stored integers where a node has moved them; None where it does more than that."""
    if node.op_type not in MOVERS or len([name for name in node.outputs if name]) != 1:
        return None
    if node.op_type in ("Cast", "CastLike"):
        return stored

    def move(array: Array) -> Array:
        (result,) = evaluate_constant(node, [array, *inputs[1:]])
        return result

    return stored.mapped(move)


def per_value(parameter: Array, shape: tuple[int, ...], node: Node) -> Array:
    """Return the scale or the zero point of each value of a tensor.

    Parameters
    ----------
    parameter : array
        Of one number, of one for each index of the node's axis, or for each block along it.
    shape : tuple of int
        Of the tensor.
    node : Node
        QuantizeLinear or DequantizeLinear.

    Raises
    ------
    UnsupportedNodeError
        If it fits the shape in none of these ways.
    """
    if parameter.size == 1:
        return np.broadcast_to(parameter.reshape(()), shape)
    rank, axis = len(shape), node.integer("axis", 1)
    if not -rank <= axis < rank:
        raise UnsupportedNodeError(f"axis {axis} does not exist in a {rank}-D tensor")
    axis %= rank
    block = node.integer("block_size", 0)
    if block and parameter.ndim == rank:
        spread = np.repeat(parameter, block, axis).take(range(shape[axis]), axis)
        return np.broadcast_to(spread, shape)
    if parameter.size != shape[axis]:
        raise UnsupportedNodeError(
            f"it has {parameter.size} scales or zero points for axis {axis} of a tensor of shape "
            f"{shape}; expected 1 or {shape[axis]}"
        )
    extents = [-1 if i == axis else 1 for i in range(rank)]
    return np.broadcast_to(parameter.reshape(extents), shape)


def _along(array: Array, axis: int) -> Array | None:
    """Return what an array holds along an axis, if it varies along no other."""
    channels = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    first = channels[:, 0]
    if np.any(channels != first[:, None]):
        return None
    return first[:1] if np.all(first == first[0]) else first
