"""Convolutions and dense layers of weights and inputs of one bit, or few (`conv2d_binary`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm import tirx

from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.formats import Uniform
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d
from tvmquant.schedules.conv2d_spec import Tiling
from tvmquant.schedules.families.contraction import (
    CONV2D,
    DENSE,
    Array,
    Contraction,
    Layer,
    Lowered,
    Operand,
    Weight,
)
from tvmquant.schedules.families.conv2d import Conv2DFamily, spec_of
from tvmquant.schedules.families.family import Tilings, finishing
from tvmquant.schedules.isa import INDEX_BITS
from tvmquant.schedules.isa.binary_stages import PACKED

# Planes of weight and input whose pairs are counted, by the bits of both. Each pair takes as long
# as a layer of one bit. Four, of 2 and 2 bits or of 1 and 4, could not be more than 1.9 (AVX2) and
# 1.5 times (AVX512-VNNI) as fast as INT8 in the first cache, and reach 0.8 of that; 4-bit products
# in chains are 1.6 times on AVX2 (`benchmarks kernels --binary`).
PLANES = {(1, 1): (1, 1), (1, 2): (1, 2), (1, 3): (1, 3), (2, 1): (2, 1)}


class BinaryConv2DFamily(Conv2DFamily):
    """Convolutions of one group whose bits fill words: w1a1, w1a2, w1a3 and w2a1.

    The accumulator is exact: counts of differing bits of two planes are at most the window's
    products, K. Chains of 63 steps of 4 fit 8 bits, counts 16 where K < 2**16 and else 32; their
    sum over planes is at most 7 K. What the bias adds may wrap around (`conv2d_binary.class_bias`).
    """

    name = "binary_conv2d"
    operator = CONV2D

    def accepts(self, contraction: Contraction, choice: BitChoice, machine: Machine | None) -> bool:
        """Whether weight and input are bits that can be packed; other layers multiply bytes."""
        bits = (choice.weight.bits, choice.activation.bits) in PLANES and not choice.weight.group
        packed = contraction.groups == 1 and contraction.channels % PACKED == 0
        return bits and packed and contraction.operator == self.operator

    def scales_groups(
        self, contraction: Contraction, choice: BitChoice, machine: Machine | None
    ) -> bool:
        """Bits have no groups."""
        return False

    def lower(self, layer: Layer, machine: Machine, tilings: Tilings) -> Lowered:
        """Return the kernel of a layer, and its arguments.

        Raises
        ------
        QuantizationError
            When weights of one bit are neither -1 nor 1.
        """
        bits = layer.weight_format.bits, layer.activation_format.bits
        weight_planes, input_planes = PLANES[bits]
        if weight_planes == 2 and layer.weight.min(initial=0) < -1:  # of imported models
            return super().lower(layer, machine, tilings)
        if weight_planes == 1 and np.any(np.abs(layer.weight) != 1):
            raise QuantizationError(
                f"layer {layer.name!r}: weights in [{layer.weight.min()}, {layer.weight.max()}], "
                f"expected -1 and 1 only; quantize the layer with 8-bit weights"
            )
        spec = replace(
            spec_of(layer.contraction).flattened(),
            input_zero_point=layer.input_zero_point,
            epilogue=layer.epilogue,
            residual_dtype=layer.residual_dtype,
            binary=True,
            input_planes=input_planes,
            weight_planes=weight_planes,
        )
        tiling = tilings(self.name, spec, layer.name) or self.default(spec, machine)
        shape = conv2d.output_shape(spec, tiling)
        arguments = (
            Operand("input", conv2d.input_shape(spec, tiling), tiling.dot, input_planes),
            _stored(conv2d.pack_weight(layer.weight, spec, tiling), tiling),
            *((conv2d.counts(),) if tiling.dot.looks_up else ()),
            conv2d.pack_bias(layer.bias, layer.weight, spec, tiling),
            *finishing(layer, conv2d.padded_outputs(spec, tiling), shape),
        )
        return Lowered(self.kernel(spec, tiling), arguments, shape)


def _stored(packed: Array, tiling: Tiling) -> Weight | Array:
    """Return a weight as the library is to hold it: one bit for each."""
    if not tiling.dot.looks_up:
        return packed
    return Weight(packed, INDEX_BITS, Uniform(INDEX_BITS, signed=False))


class BinaryDenseFamily(BinaryConv2DFamily):
    """Dense layers."""

    operation = "dense"
    operator = DENSE

    def kernel(self, spec: Any, tiling: Any) -> tirx.PrimFunc:
        """Return the scheduled kernel."""
        return conv2d.kernel(spec, tiling, self.operation)
