"""A tensor of integers of the file, known by the real values that they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.imported_quantizers import integer_range


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers ``q`` of real value ``(q - zero_point) * scale``.

    What only moves integers is converted on their real values, so that the graph holds
    fake_quants and float operators alone.

    Parameters
    ----------
    real : relax.Var
        A float tensor of such values.
    scale : float32 array of shape (1,), or (C,) along ``axis``
    zero_point : int
    dtype : str
        Integer type in the file.
    axis : int
        -1 where there is one scale.
    """

    real: relax.Var
    scale: Array
    zero_point: int
    dtype: str
    axis: int = -1

    def is_like(self, other: object) -> bool:
        """Whether equal integers of both stand for equal numbers."""
        if not isinstance(other, QuantizedTensor):
            return False
        alike = (self.zero_point, self.dtype, self.axis) == (
            other.zero_point,
            other.dtype,
            other.axis,
        )
        return alike and np.array_equal(self.scale, other.scale)

    def integers(self) -> relax.Call:
        """Return the integers, computed from the real values.

        Raises
        ------
        UnsupportedNodeError
            If their scale differs along an axis, or they have other than 8, 16 or 32 bits.
        """
        bits, low, high = integer_range(self.dtype)
        if self.axis >= 0 or bits not in (8, 16, 32):
            raise UnsupportedNodeError(
                f"it takes integers of type {self.dtype} with {self.scale.size} scales as they "
                "are, expected 8, 16 or 32 bits and one scale; dequantize them before"
            )
        attrs = {
            "scale": float(self.scale[0]),
            "zero_point": self.zero_point,
            "qmin": low,
            "qmax": high,
            "out_dtype": self.dtype,
            "id": f"{self.real.name}.integers",
        }
        return qop.emit(qop.QUANTIZE, [self.real], attrs)
