"""QuantizeLinear and DequantizeLinear of activations: equations (1) and (2) of the arithmetic.

Both round half to even, at one float32 quotient, and saturate at the limits of their type. Narrower
limits are a Clip: of the integers, which leaves a runtime that fuses a layer with its
QuantizeLinear the pair that it looks for; of 16 bits, for which runtimes have no Clip, of the real
values in front, which gives the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmquant.arithmetic import quantize_half_even
from tvmquant.export import opsets
from tvmquant.export.builder import OnnxBuilder
from tvmquant.formats import Binary
from tvmquant.passes.accumulator import Quantized
from tvmquant.passes.scale_factors import varying_axes


@dataclass(frozen=True)
class Quantizer:
    """How a tensor is quantized.

    Parameters
    ----------
    scale : float32 array
        Of shape (), or (C,) along ``axis``.
    zero_point, qmin, qmax : int
    dtype : str
        ``"uint8"`` or ``"int16"``.
    axis : int
        -1 where there is one scale.
    """

    scale: npt.NDArray[np.float32]
    zero_point: int
    qmin: int
    qmax: int
    dtype: str = "uint8"
    axis: int = -1

    @classmethod
    def along(
        cls, scale: npt.NDArray[np.float32], axis: int, zero_point: int, qmin: int, qmax: int,
        dtype: str,
    ) -> Quantizer:  # fmt: skip
        """Return a quantizer of one scale, or of one for each channel."""
        if scale.size == 1:
            return cls(scale.reshape(()), zero_point, qmin, qmax, dtype)
        return cls(scale.reshape(-1), zero_point, qmin, qmax, dtype, axis)

    def scale_of_rank(self, rank: int) -> npt.NDArray[np.float32]:
        """Return the scale as it broadcasts against a tensor."""
        if self.axis < 0:
            return self.scale
        return self.scale.reshape([-1 if i == self.axis else 1 for i in range(rank)])

    def write(self, builder: OnnxBuilder, x: str, name: str) -> str:
        """Append the nodes that quantize and dequantize a value, and return its name then."""
        limits = np.iinfo(self.dtype)
        narrow = self.qmin > limits.min or self.qmax < limits.max
        if narrow and self.dtype == "int16":
            x = self._clipped_in_reals(builder, x, name)
        scale, zero = self._constants(builder, name)
        axis = None if self.axis < 0 else self.axis
        q = builder.node("QuantizeLinear", [x, scale, zero], f"{name}/QuantizeLinear", axis=axis)
        if narrow and self.dtype != "int16":
            q = self._clipped(builder, q, name)
        return builder.node(
            "DequantizeLinear", [q, scale, zero], f"{name}/DequantizeLinear", axis=axis
        )

    def write_constant(
        self, builder: OnnxBuilder, array: npt.NDArray[np.float32], name: str
    ) -> str:
        """Append a constant as integers of one scale, and return what they stand for."""
        steps = quantize_half_even(
            array, float(self.scale), self.zero_point, self.qmin, self.qmax, self.dtype
        )
        integers = builder.constant(steps, f"{name}/integers")
        return builder.node(
            "DequantizeLinear", [integers, *self._constants(builder, name)],
            f"{name}/DequantizeLinear",
        )  # fmt: skip

    def _constants(self, builder: OnnxBuilder, name: str) -> tuple[str, str]:
        zero = np.full(self.scale.shape, self.zero_point, self.dtype)
        return (
            builder.constant(self.scale, f"{name}/scale"),
            builder.constant(zero, f"{name}/zero_point"),
        )

    def _clipped(self, builder: OnnxBuilder, q: str, name: str) -> str:
        ends = [
            builder.constant(np.asarray(end, self.dtype), f"{name}/{label}")
            for end, label in ((self.qmin, "qmin"), (self.qmax, "qmax"))
        ]
        return builder.node("Clip", [q, *ends], f"{name}/Clip")

    def _clipped_in_reals(self, builder: OnnxBuilder, x: str, name: str) -> str:
        ends = [
            builder.constant(np.float32(end - self.zero_point) * self.scale, f"{name}/{label}")
            for end, label in ((self.qmin, "least"), (self.qmax, "greatest"))
        ]
        return builder.node("Clip", [x, *ends], f"{name}/Clip")


def write_sign(builder: OnnxBuilder, x: str, to: Quantizer, name: str, *, strict: bool) -> str:
    """Append the nodes that give the nearer of a binary tensor's two levels, and return its name.

    They are numbers: no integer type of ONNX has two levels about 0.

    Parameters
    ----------
    builder : OnnxBuilder
    x : str
    to : Quantizer
    name : str
        Of the nodes.
    strict : bool
        Whether what lies in the middle is rounded down.
    """
    reals = [np.float32(q - to.zero_point) * to.scale for q in (to.qmin + 1, to.qmax, to.qmin)]
    middle, upper, lower = (
        builder.constant(real, f"{name}/{label}")
        for real, label in zip(reals, ("middle", "upper", "lower"), strict=True)
    )
    compared = "Greater" if strict else "GreaterOrEqual"
    above = builder.node(compared, [x, middle], f"{name}/{compared}")
    return builder.node("Where", [above, upper, lower], f"{name}/Where")


def write_rounding(builder: OnnxBuilder, x: str, to: Quantized, name: str, *, clips: bool) -> str:
    """Append the nodes that round a value to the integers of a tensor, and return its name then.

    Parameters
    ----------
    builder : OnnxBuilder
    x : str
    to : Quantized
        Its factors may vary along several axes.
    name : str
        Of the nodes.
    clips : bool
        Whether the value may lie beyond the tensor's least and greatest integer.

    Notes
    -----
    Integers that the operator set has not are left out, as are those of a fake_quant.
    """
    if not opsets.holds(to.dtype, builder.opset):
        return x
    ends = (to.qmin, to.qmax) if clips else _levels(to)
    axes = [] if to.factors is None else varying_axes(to.factors)
    if len(axes) < 2:
        scale = to.scales.astype(np.float32)
        quantizer = Quantizer.along(scale, axes[0] if axes else -1, to.zero_point, *ends, to.dtype)
        return quantizer.write(builder, x, name)
    x = write_in_one_scale(builder, x, to, name)
    factors = builder.constant(np.float32(to.factors), f"{name}/factors")
    return builder.node("Mul", [x, factors], f"{name}/Mul")


def write_in_one_scale(builder: OnnxBuilder, x: str, held: Quantized, name: str) -> str:
    """Append the nodes that give a value of several scales one, and leave its integers as they are.

    A layer multiplies the integers: the scales are in its weight.
    """
    if held.factors is None:
        return x
    inverse = builder.constant(np.float32(1.0 / held.factors), f"{name}/inverse_factors")
    x = builder.node("Mul", [x, inverse], f"{name}/Mul")
    scale = np.asarray(held.scale, np.float32)
    if isinstance(held.format, Binary):
        to = Quantizer(scale, held.zero_point, held.format.qmin, held.format.qmax, held.dtype)
        return write_sign(builder, x, to, name, strict=False)
    return Quantizer(scale, held.zero_point, *_levels(held), held.dtype).write(builder, x, name)


def _levels(held: Quantized) -> tuple[int, int]:
    """Return the limits of a tensor's format, which tell its width."""
    limits = np.iinfo(held.dtype)
    return int(limits.min), min(int(limits.max), held.format.qmax)


def write_input(builder: OnnxBuilder, x: str, name: str) -> str:
    """Append the node that reads an input of integers as the numbers they are."""
    one = builder.constant(np.float32(1.0), f"{name}/scale")
    return builder.node("DequantizeLinear", [x, one], f"{name}/DequantizeLinear")
