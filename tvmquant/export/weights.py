"""The integers of weights as constants, each at its width, and the DequantizeLinear behind them.

A weight in groups has a step for each of them. Where groups are blocks of the operator that ONNX
has since opset 21, they are written as such; else the levels times the multipliers of their groups,
which fit 8 bits, at the channel's step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmquant.arithmetic import Array
from tvmquant.export import opsets
from tvmquant.export.builder import PACKED, OnnxBuilder
from tvmquant.passes.accumulator import QuantizedWeight
from tvmquant.weight_pairs import outputs_back


@dataclass(frozen=True)
class WeightLayout:
    """Where a layer has the outputs of its weight.

    Parameters
    ----------
    axis : int
        0 of convolutions (O, I / groups, kh, kw); 1 of transposed ones (I, O / groups, kh, kw) and
        dense layers (I, O).
    groups : int
    """

    axis: int
    groups: int = 1

    def back(self, array: Array) -> Array:
        """Return an array that is output channels first in the layout of the layer."""
        return np.ascontiguousarray(outputs_back(array, self.axis, self.groups))


@dataclass(frozen=True)
class _Stored:
    """Integers in the layout of the layer, and the float32 steps of channels or blocks."""

    integers: Array
    bits: int
    scale: npt.NDArray[np.float32]
    axis: int
    block: int | None = None


def write_weight(
    builder: OnnxBuilder, weight: QuantizedWeight, layout: WeightLayout, name: str, *, packs: bool
) -> str:
    """Append a weight and the nodes that dequantize it, and return the name of what they give.

    What is written multiplies the *integers* of a layer's input, whose scales it has taken in.

    Parameters
    ----------
    builder : OnnxBuilder
    weight : QuantizedWeight
        Output channels first.
    layout : WeightLayout
    name : str
        Of the nodes.
    packs : bool
        Store fewer than 8 bits in a type of their own, where the opset has it.
    """
    stored = _stored(weight, layout, builder.opset, packs)
    kind = opsets.narrowest_type(stored.bits, builder.opset) if packs else "int8"
    if kind in PACKED:
        integers = builder.packed(stored.integers, kind, f"{name}/integers")
    else:
        integers = builder.constant(stored.integers.astype(np.int8), f"{name}/integers")
    scale = builder.constant(stored.scale, f"{name}/scale")
    if stored.block is not None:
        return builder.node(
            "DequantizeLinear", [integers, scale], f"{name}/DequantizeLinear", axis=stored.axis,
            block_size=stored.block,
        )  # fmt: skip
    if stored.scale.ndim > 1:
        return _times_steps(builder, integers, scale, kind, name)
    # ONNX Runtime fuses a Gemm only where a zero point is written
    zeros = np.zeros(stored.scale.shape, np.int8)
    if weight.zero_point is not None:
        zeros += weight.zero_point.astype(np.int8)
    zero = (builder.packed(zeros, kind, f"{name}/zero_point") if kind in PACKED
            else builder.constant(zeros, f"{name}/zero_point"))  # fmt: skip
    return builder.node(
        "DequantizeLinear", [integers, scale, zero], f"{name}/DequantizeLinear", axis=stored.axis
    )


def _stored(weight: QuantizedWeight, layout: WeightLayout, opset: int, packs: bool) -> _Stored:
    levels, multiplier = weight.levels(weight.scale), weight.group_multiplier
    scale = weight.scale.astype(np.float32)
    if multiplier is not None and packs and opsets.has_blocks(opset):
        blocks = _blocks(multiplier, weight.format.group)
        if blocks is not None:
            steps = scale.reshape(-1, *(1,) * (levels.ndim - 1)) * blocks.astype(np.float32)
            return _Stored(
                layout.back(levels), weight.format.bits, layout.back(steps), 1 - layout.axis,
                weight.format.group,
            )  # fmt: skip
    bits = weight.format.bits if multiplier is None else 8
    integers = layout.back(weight.round(weight.scale))
    if layout.axis == 0 or layout.groups == 1 or integers.ndim == 2:
        return _Stored(integers, bits, scale, layout.axis)
    return _of_transposed_groups(integers, bits, scale, layout, opset)


def _blocks(multiplier: Array, size: int) -> Array | None:
    """Return the multipliers of blocks of input channels, (O, I / size, ...); None of other groups.

    OpenVINO refuses a last block that is smaller.
    """
    outputs, inputs, *kernel = multiplier.shape
    if inputs % size:
        return None
    blocks = multiplier.reshape(outputs, inputs // size, size, *kernel)
    return blocks[:, :, 0] if np.all(blocks == blocks[:, :, :1]) else None


def _of_transposed_groups(
    integers: Array, bits: int, scale: npt.NDArray[np.float32], layout: WeightLayout, opset: int
) -> _Stored:
    """Return a weight (I, O / groups, kh, kw) whose outputs differ between groups of inputs."""
    inputs, outputs, *kernel = integers.shape
    steps = scale.reshape(layout.groups, outputs, *(1,) * len(kernel))
    if not opsets.has_blocks(opset):
        return _Stored(integers, bits, np.repeat(steps, inputs // layout.groups, axis=0), 0)
    whole = np.ascontiguousarray(np.broadcast_to(steps, (layout.groups, outputs, *kernel)))
    return _Stored(integers, bits, whole, 0, inputs // layout.groups)


def _times_steps(builder: OnnxBuilder, integers: str, scale: str, kind: str, name: str) -> str:
    """Multiply integers by a step each, where DequantizeLinear cannot."""
    one = builder.constant(np.float32(1.0), f"{name}/one")
    whole = builder.node("DequantizeLinear", [integers, one], f"{name}/DequantizeLinear")
    return builder.node("Mul", [whole, scale], f"{name}/Mul")
