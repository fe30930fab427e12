"""Transposed convolutions whose windows lie side by side: convolutions of single pixels.

Every element of the kernel is an output channel of a 1x1 convolution; then a row of the input
becomes ``kh`` rows of the output. Of few channels the vectors are full that way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tvmquant.bit_choice import BitChoice
from tvmquant.formats import INT8
from tvmquant.machine import Machine
from tvmquant.schedules import kernel_facts
from tvmquant.schedules.families.contraction import (
    CONV2D,
    CONV2D_TRANSPOSE,
    Contraction,
    Layer,
    Lowered,
)
from tvmquant.schedules.families.conv2d import Conv2DFamily
from tvmquant.schedules.families.family import Tilings


class TiledTransposeFamily(Conv2DFamily):
    """Transposed convolutions without overlap, and without a second term in the epilogue."""

    operation = "conv2d_transpose"

    def accepts(self, contraction: Contraction, choice: BitChoice, machine: Machine | None) -> bool:
        """Whether the windows lie side by side and fill the output."""
        plain = (
            contraction.strides == contraction.kernel
            and not any(contraction.padding)
            and not any(contraction.output_padding)
            and contraction.dilation == (1, 1)
            and contraction.groups == 1
        )
        return contraction.operator == CONV2D_TRANSPOSE and plain and not contraction.residual

    def scales_groups(
        self, contraction: Contraction, choice: BitChoice, machine: Machine | None
    ) -> bool:
        """Whether groups of weights are scaled: they would be of one element of the kernel."""
        return False

    def lower(self, layer: Layer, machine: Machine, tilings: Tilings) -> Lowered:
        """Return the kernel of a layer, and its arguments.

        The bias takes the input's zero point off all elements: each channel has that of the others
        back, as in `conv2d_transpose.pack_bias`.
        """
        c = layer.contraction
        rows, columns = c.kernel
        taps = rows * columns
        packed = np.ascontiguousarray(layer.whole_weight.transpose(1, 2, 0, 3))
        sums = packed.sum(axis=3, dtype=np.int64)
        unmet = (sums.sum(axis=(0, 1)) - sums).reshape(-1) * layer.input_zero_point
        pointwise = Contraction(CONV2D, c.batch, c.height, c.width, c.channels, taps * c.outputs)
        lowered = super().lower(
            replace(
                layer,
                contraction=pointwise,
                weight=packed.reshape(taps * c.outputs, 1, 1, c.channels),
                bias=(np.tile(layer.bias, taps) + unmet).astype(np.int32),
                weight_format=INT8 if layer.weight_format.group else layer.weight_format,
                multiplier=None,
                input_zero_point=0,
                vectors=layer.vectors and layer.vectors.repeated(taps),
            ),
            machine, tilings,
        )  # fmt: skip
        shape = (c.batch * c.height, c.width, rows, columns * c.outputs)
        kernel = lowered.kernel.with_attr(kernel_facts.OPERATION, self.operation)
        return replace(lowered, kernel=kernel, view=shape, axes=(0, 2, 1, 3))
