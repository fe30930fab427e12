"""Scales and shifts per channel, and how they move into the weights of a contraction.

Written ``y = scale * f(x) + shift``, with f the identity or a *contraction* (convolution,
transposed convolution, dense layer) whose weight is constant. Everything is float64 until a
constant is made, so that a weight is rounded once however many operators were folded into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import FloatArray
from tvmquant.ir import quantized_ops as qop

CONV2D = "relax.nn.conv2d"
CONV2D_TRANSPOSE = "relax.nn.conv2d_transpose"
MATMUL = "relax.matmul"

ONE: FloatArray = np.ones(1)
ZERO: FloatArray = np.zeros(1)


@dataclass(frozen=True)
class Contraction:
    """A convolution or dense layer with a constant weight.

    Parameters
    ----------
    call : Call
    folded_weight : float64 array or None
        What stands in place of the call's own weight, in its layout.
    """

    call: relax.Call
    folded_weight: FloatArray | None = None

    @property
    def weight(self) -> FloatArray:
        """The weight as float64, in the layout of the operator."""
        if self.folded_weight is not None:
            return self.folded_weight
        weight: FloatArray = qop.constant_array(self.call.args[1]).astype(np.float64)
        return weight

    @property
    def groups(self) -> int:
        """Number of groups; 1 for a dense layer."""
        return int(getattr(self.call.attrs, "groups", 1))

    def weight_per_output(self, factors: FloatArray) -> FloatArray:
        """Shape one number per output channel so that it broadcasts against the weight."""
        if factors.size == 1 or qop.is_call(self.call, MATMUL):  # (K, O)
            return factors
        if qop.is_call(self.call, CONV2D):  # (O, I / groups, kh, kw)
            return factors.reshape(-1, 1, 1, 1)
        return self._spread(factors)  # (I, O / groups, kh, kw)

    def weight_per_input(self, factors: FloatArray) -> FloatArray:
        """Shape one number per input channel so that it broadcasts against the weight."""
        if factors.size == 1:
            return factors
        if qop.is_call(self.call, CONV2D):
            return self._spread(factors)
        return factors.reshape(-1, *(1,) * (len(self._extents) - 1))  # inputs first

    @property
    def _extents(self) -> list[int]:
        return [int(v) for v in self.call.args[1].ty.shape.values]

    def _spread(self, factors: FloatArray) -> FloatArray:
        """Lay channels that the weight's second axis counts within each group along that axis."""
        first, second = self._extents[:2]
        per_group = factors.reshape(self.groups, 1, second)
        return np.repeat(per_group, first // self.groups, axis=1).reshape(first, second, 1, 1)

    def absorb(self, before: ChannelAffine) -> ChannelAffine | None:
        """Fold an affine function of the input into the weight, where that is exact.

        ``W (s x + t) = (W s) x + W t``. The second term is the same at every output position, and
        so a bias, only if each position sums over the whole kernel: in a dense layer and in an
        unpadded convolution. With padding, or in a transposed convolution, t must be 0.
        """
        shifted = bool(np.any(before.shift))
        padded = qop.is_call(self.call, CONV2D) and any(int(p) for p in self.call.attrs.padding)
        if shifted and (padded or qop.is_call(self.call, CONV2D_TRANSPOSE)):
            return None
        shift = ZERO
        if shifted:
            products = self.weight * self.weight_per_input(before.shift)
            over = 0 if qop.is_call(self.call, MATMUL) else (1, 2, 3)
            shift = products.sum(axis=over)
        weight = self.weight * self.weight_per_input(before.scale)
        args = [before.source, self.call.args[1]]
        call = relax.Call(self.call.op, args, self.call.attrs, self.call.ty_args, self.call.span)
        return ChannelAffine(None, Contraction(call, weight), result_layout(call), shift=shift)


@dataclass(frozen=True)
class ChannelAffine:
    """``scale * f + shift`` along ``axis``, f being ``source`` or ``contraction``.

    Parameters
    ----------
    source : Expr or None
        The tensor, where there is no contraction.
    contraction : Contraction or None
    layout : tuple of (rank, channel axis)
    scale, shift : float64 arrays of shape (1,) or (C,)
    """

    source: relax.Expr | None
    contraction: Contraction | None
    layout: tuple[int, int]
    scale: FloatArray = field(default_factory=lambda: ONE)
    shift: FloatArray = field(default_factory=lambda: ZERO)

    @property
    def is_bare(self) -> bool:
        """Whether this is a contraction as it came, without anything to fold."""
        return self.source is None and _is_identity(self.scale, self.shift)

    def then(self, scale: FloatArray, shift: FloatArray) -> ChannelAffine:
        """Return ``scale * self + shift``."""
        return replace(self, scale=self.scale * scale, shift=self.shift * scale + shift)

    def constant(self, values: FloatArray) -> relax.Expr:
        """Return per-channel numbers as a float32 constant that broadcasts against the tensor."""
        if values.size == 1:
            return qop.constant(np.float32(values[0]))
        rank, axis = self.layout
        shape = [-1 if i == axis else 1 for i in range(axis if axis == rank - 1 else 0, rank)]
        return qop.constant(values.astype(np.float32).reshape(shape))


def contraction_of(call: Any) -> Contraction | None:
    """Return a contraction with a constant float32 weight in ONNX layout, else None."""
    if not qop.is_call(call, CONV2D, CONV2D_TRANSPOSE, MATMUL):
        return None
    data, weight = call.args
    if not isinstance(data, relax.Var) or not isinstance(weight, tvm.ir.GenericConst):
        return None
    if str(weight.ty.dtype.dtype) != "float32":
        return None
    if qop.is_call(call, MATMUL):
        usable = len(weight.ty.shape.values) == 2
    else:
        kernel = "OIHW" if qop.is_call(call, CONV2D) else "IOHW"
        layouts = (call.attrs.data_layout, call.attrs.out_layout, call.attrs.kernel_layout)
        usable = layouts == ("NCHW", "NCHW", kernel)
    return Contraction(call) if usable else None


def result_layout(call: relax.Call) -> tuple[int, int]:
    """Return (rank, channel axis) of a contraction's result."""
    rank = len(call.args[0].ty.shape.values)
    return rank, rank - 1 if qop.is_call(call, MATMUL) else 1


def channel_vector(constant: Any, rank: int, axis: int) -> FloatArray | None:
    """Return a constant that varies along ``axis`` only as float64 of shape (1,) or (C,)."""
    if constant is None or constant.dtype != np.float32 or constant.ndim > rank:
        return None
    if not np.isfinite(constant).all():
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(extent != 1 for i, extent in enumerate(shape) if i != axis):
        return None
    vector: FloatArray = constant.reshape(-1).astype(np.float64)
    return vector


def _is_identity(scale: FloatArray, shift: FloatArray) -> bool:
    return not np.any(shift) and bool(np.all(scale == 1.0))
