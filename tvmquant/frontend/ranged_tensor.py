"""Integers of the file by a range that is found at run time, and the numbers that say which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvm import relax

from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop


@dataclass(frozen=True)
class RangedTensor:
    """What DynamicQuantizeLinear gives first.

    Parameters
    ----------
    real : relax.Var
        A float tensor of the values that the integers stand for, wherever they have moved.
    source : relax.Var
        The tensor whose range it is, not rounded.
    """

    real: relax.Var
    source: relax.Expr
    dtype: ClassVar[str] = "uint8"

    def is_like(self, other: object) -> bool:
        """Whether equal integers of both stand for equal numbers."""
        return isinstance(other, RangedTensor) and self.source.same_as(other.source)

    def integers(self) -> relax.Call:
        """Return the integers, computed from the real values."""
        attrs = {"id": f"{self.real.name}.integers", "padding": [0, 0, 0, 0], "layout": ""}
        return qop.emit(dyn.DYNAMIC_QUANTIZE, [self.real, range_of(self.source)], attrs)


@dataclass(frozen=True)
class RangeParameter:
    """What DynamicQuantizeLinear gives besides: a scale, or a zero point.

    Parameters
    ----------
    source : relax.Var
        The tensor whose range it is.
    is_scale : bool
    """

    source: relax.Expr
    is_scale: bool

    @property
    def dtype(self) -> str:
        """Its type in the file."""
        return "float32" if self.is_scale else "uint8"

    def value(self) -> relax.Call:
        """Return the number, as a tensor without axes."""
        index = relax.const(0 if self.is_scale else 1, "int64")
        number = relax.op.take(range_of(self.source), index, axis=0)
        return number if self.is_scale else relax.op.astype(number, "uint8")


def range_of(source: relax.Expr) -> relax.Call:
    """Return scale and zero point of a tensor."""
    name = getattr(source, "name", "constant")
    return qop.emit(dyn.DYNAMIC_RANGE, [source], {"id": f"{name}.range"})
