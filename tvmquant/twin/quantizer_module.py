"""What a ``fake_quant`` does to a tensor, as a torch module that training can change or replace."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tvmquant.errors import QuantizationError
from tvmquant.twin.fake_quantize import (
    along_axis,
    fake_quantize_bounded,
    fake_quantize_half_even,
    fake_quantize_sign,
)


@runtime_checkable
class Quantizer(Protocol):
    """What a module that replaces `FakeQuantize` has, so that it can be written back.

    Attributes
    ----------
    scale : float32 tensor of shape (1,), (C,) along the edge's axis, or that of what it quantizes
    zero_point : int32 tensor of shape (1,)
    qmin, qmax : int32 tensors without axes
    """

    scale: Tensor
    zero_point: Tensor
    qmin: Tensor
    qmax: Tensor

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return the tensor quantized and dequantized."""
        ...


@runtime_checkable
class WeightQuantizer(Protocol):
    """What a quantizer has that does more to a weight than its ``fake_quant``, which rounds.

    It may map the weight before, or have a range for each channel.
    """

    def written(self, weight: Tensor, /) -> Tensor:
        """Return what the graph gets in place of the weight: rounding it gives the same integers.

        What had a range of its own is in whole numbers of its steps.
        """
        ...


class FakeQuantize(torch.nn.Module):
    """Quantize and dequantize, ties to even, with a straight-through gradient.

    Parameters
    ----------
    scale : float32 tensor of shape (1,), (C,) along `axis`, or that of what is quantized
        0 where the edge is not calibrated yet.
    zero_point : int32 tensor of shape (1,)
    qmin, qmax : int
    axis : int
        Of the channels; -1 where there is one scale.
    multiplier : tensor like what is quantized, optional
        Of the step of each value.
    bounded : bool
        Pairs of weights fit 16 bits (`tvmquant.weight_pairs`).
    groups : int
        Of the weight's layer.

    Attributes
    ----------
    scale, zero_point, qmin, qmax : tensors
        Buffers, which can be set; `learn_scale` makes the scale a parameter.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: Tensor
    qmax: Tensor
    multiplier: Tensor | None

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        *,
        axis: int = -1,
        multiplier: Tensor | None = None,
        bounded: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.axis, self.bounded, self.groups = axis, bounded, groups
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("qmin", torch.tensor(qmin, dtype=torch.int32))
        self.register_buffer("qmax", torch.tensor(qmax, dtype=torch.int32))
        self.register_buffer("multiplier", multiplier)

    def learn_scale(self) -> torch.nn.Parameter:
        """Make the scale a parameter, and return it; its gradient is that of LSQ.

        Raises
        ------
        QuantizationError
            If there is no scale to begin with.
        """
        if not bool((self.scale > 0).all()):
            raise QuantizationError("a scale is learned from a calibrated one; calibrate first")
        if not isinstance(self.scale, torch.nn.Parameter):
            learned = torch.nn.Parameter(self.scale.detach().clone())
            del self.scale
            self.register_parameter("scale", learned)
        return self.get_parameter("scale")

    def steps_of(self, x: Tensor) -> Tensor:
        """Return the step of each number of a tensor, so that it broadcasts with them."""
        scale = along_axis(self.scale, x, self.axis)
        return scale if self.multiplier is None else scale * self.multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor quantized and dequantized, bit for bit as integers give it."""
        scale = self.scale
        if self.multiplier is not None:
            scale = along_axis(scale, x, self.axis) * self.multiplier
        if self.bounded:
            return fake_quantize_bounded(x, scale, int(self.qmax), self.axis, self.groups)
        return fake_quantize_half_even(x, scale, self.zero_point, self.qmin, self.qmax, self.axis)


class FakeSign(FakeQuantize):
    """Round to the two levels of one bit, with the gradient of a clip.

    Parameters
    ----------
    scale, zero_point, qmin, qmax, axis, multiplier
        As of `FakeQuantize`.
    strict : bool
        Whether the middle is rounded down.
    """

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        *,
        axis: int = -1,
        multiplier: Tensor | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(scale, zero_point, qmin, qmax, axis=axis, multiplier=multiplier)
        self.strict = strict

    def forward(self, x: Tensor) -> Tensor:
        """Return the level of each number."""
        scale, middle = self.scale, int(self.qmin) + 1
        if self.multiplier is not None:
            scale = along_axis(scale, x, self.axis) * self.multiplier
        return fake_quantize_sign(x, scale, self.zero_point, middle, self.axis, strict=self.strict)
