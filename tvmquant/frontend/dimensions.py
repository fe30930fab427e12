"""Dimensions at import: numbers, or the symbolic batch times a number.

Shape arithmetic of exported models (``Shape -> Gather -> Concat -> Reshape``) is evaluated while
importing. All it does with the batch is to carry it along, to multiply it and to cancel it; sums
such as ``N + 1`` do not occur in networks that treat images one by one and are rejected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# Of a tensor of one item: 4 GiB of float32. TVM computes with 32-bit indices.
MAX_ELEMENTS = 2**30
# Of a constant that is computed at import.
MAX_CONSTANT = 2**28


class UnsupportedNodeError(Exception):
    """The reason why one node cannot be imported; collected, then reported all at once."""


@dataclass(frozen=True)
class Batch:
    """The dimension ``factor * N``, N being the symbolic batch."""

    factor: int = 1

    def __mul__(self, other: Any) -> Batch:
        if isinstance(other, Batch):
            raise UnsupportedNodeError("it multiplies the batch size by itself")
        scaled = self.factor * other
        if scaled != int(scaled):
            raise UnsupportedNodeError("it multiplies the batch size by a fraction")
        if scaled == 0:
            raise UnsupportedNodeError("it multiplies the batch size by zero")
        return Batch(int(scaled))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Batch | int:
        divisor = other.factor if isinstance(other, Batch) else other
        if self.factor % divisor != 0:
            raise UnsupportedNodeError(f"it divides the batch size by {divisor}")
        quotient = int(self.factor // divisor)
        return quotient if isinstance(other, Batch) else Batch(quotient)

    __truediv__ = __floordiv__

    def _no_sum(self, other: Any) -> Any:
        if isinstance(other, Batch) or other != 0:
            raise UnsupportedNodeError("it adds to the batch size")
        return self

    __add__ = __radd__ = __sub__ = _no_sum

    def _not_known(self, *_: Any) -> Any:
        raise UnsupportedNodeError("its result depends on the batch size")

    __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __rmod__ = __neg__ = __rsub__ = _not_known
    __int__ = __float__ = __bool__ = __index__ = _not_known
    __rfloordiv__ = __rtruediv__ = __pow__ = _not_known


Dim: TypeAlias = int | Batch
Shape: TypeAlias = tuple[Dim, ...]
Array: TypeAlias = npt.NDArray[Any]


def is_symbolic(value: object) -> bool:
    """Whether ``value`` is an array of dimensions of which some depend on the batch."""
    return isinstance(value, np.ndarray) and value.dtype == object


def as_array(dims: Iterable[Any]) -> Array:
    """Return dimensions as an int64 array, or as an object array if some depend on the batch."""
    return concrete(np.array([*dims], dtype=object))


def concrete(array: Array) -> Array:
    """Return an object array without batch dimensions as a numeric array, others unchanged."""
    items = array.ravel().tolist()
    if any(isinstance(item, Batch) for item in items):
        return array
    if items and all(isinstance(item, bool | np.bool_) for item in items):
        return array.astype(bool)
    if any(isinstance(item, float | np.floating) for item in items):
        return array.astype(np.float32)
    return array.astype(np.int64)


def count(shape: Sequence[Dim]) -> Dim:
    """Return the number of elements of ``shape``."""
    total: Dim = 1
    for dim in shape:
        total = total * dim
    return total


def check_size(shape: Sequence[Dim], limit: int = MAX_ELEMENTS) -> None:
    """Reject a result before anything allocates it.

    Raises
    ------
    UnsupportedNodeError
        If a dimension is negative, or one item has more than ``limit`` elements.
    """
    sizes = [dim.factor if isinstance(dim, Batch) else dim for dim in shape]
    if any(size < 0 for size in sizes) or math.prod(sizes) > limit:
        raise UnsupportedNodeError(
            f"its result has shape {show(shape)}, expected at most {limit} elements for one item"
        )


def resolve_reshape(shape: Shape, target: Sequence[Dim], *, allow_zero: bool = False) -> Shape:
    """Return the shape that ONNX Reshape gives a tensor of ``shape``.

    Parameters
    ----------
    shape : Shape
        Of the input.
    target : sequence of Dim
        0 copies the input's dimension (unless ``allow_zero``), one -1 takes what remains.

    Raises
    ------
    UnsupportedNodeError
        If the element counts differ, or the batch does not come out whole.
    """
    resolved: list[Dim] = []
    for axis, dim in enumerate(target):
        if dim == 0 and not allow_zero:
            if axis >= len(shape):
                raise UnsupportedNodeError(f"it copies dimension {axis} of a {len(shape)}-D tensor")
            dim = shape[axis]
        resolved.append(dim if isinstance(dim, Batch) else int(dim))
    if min([d for d in resolved if not isinstance(d, Batch)], default=0) < -1:
        raise UnsupportedNodeError(f"it reshapes to {show(target)}; dimensions are not negative")
    if resolved.count(-1) > 1:
        raise UnsupportedNodeError(
            f"it reshapes to {show(target)}, which leaves two dimensions open"
        )
    if -1 in resolved:
        rest = resolved.index(-1)
        known = count([dim for axis, dim in enumerate(resolved) if axis != rest])
        total = count(shape)
        if isinstance(known, Batch) and not isinstance(total, Batch):
            raise UnsupportedNodeError(f"it reshapes {show(shape)} to {show(target)}")
        divisor = known.factor if isinstance(known, Batch) else known
        amount = total.factor if isinstance(total, Batch) else total
        if divisor == 0 or amount % divisor:
            raise UnsupportedNodeError(f"it reshapes {show(shape)} to {show(target)}")
        resolved[rest] = total // known
    if count(resolved) != count(shape):
        raise UnsupportedNodeError(f"it reshapes {show(shape)} to {show(target)}")
    return tuple(resolved)


def show(shape: Sequence[Dim]) -> str:
    """Return a shape as text, ``(N, 3, 224, 224)``."""

    def one(dim: Dim) -> str:
        if not isinstance(dim, Batch):
            return str(dim)
        return "N" if dim.factor == 1 else f"{dim.factor}*N"

    return "(" + ", ".join(one(dim) for dim in shape) + ")"


def broadcast_shapes(*shapes: Shape) -> Shape:
    """Return the shape that elementwise operators give, as in numpy.

    Raises
    ------
    UnsupportedNodeError
        If two dimensions differ and none is 1.
    """
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        dims = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(dims) > 1:
            listed = " and ".join(show(shape) for shape in shapes)
            raise UnsupportedNodeError(f"shapes {listed} do not broadcast")
        result.append(dims.pop() if dims else 1)
    return tuple(result)


def same_windows(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Return the padding (both sides together) with which ``ceil(size / stride)`` windows fit."""
    reach = (math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1
    return max(reach - size, 0)
