"""What happens to an accumulator before it is stored: one definition for all kernels.

With ``M``, ``s`` and ``offset`` per channel, equation (3) of `tvmquant.arithmetic` in the form

    t = acc * M + r * M_r + offset'
    q = clip(t >> s, qmin, qmax)          offset' = offset - z_a M - z_r M_r + 2**(s-1) + z 2**s

where ``offset'`` is folded when the graph is lowered, so that a kernel spends one multiplication
per term, one addition, one shift and the clip. In ``int32`` where range analysis proved that t
fits (16 lanes of 512 bits), else in ``int64``.

Where ties go to even (3e), ``offset'`` lacks 2**(s-1) and z, which are added to t and to t >> s:

    q = clip(((t + 2**(s-1) - 1 + ((t >> s) & 1)) >> s) + z, qmin, qmax)

With slopes (a PRelu), an accumulator below its zero point is multiplied by ``M_n``, not ``M``.

Rejected: slopes behind a second term (RPReLU behind a shortcut) as another equation on the clipped
value in the same kernel: LLVM spills its vectors. 1x1 layers of bits on Zen 5: 256 to 256 channels
44 microseconds, two kernels 37; 128 to 128 65 and 55; on AVX2 the same within 8 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx


@dataclass(frozen=True)
class Epilogue:
    """Static parameters of an epilogue.

    Parameters
    ----------
    compute_dtype : str
        ``"int32"`` or ``"int64"``.
    out_dtype : str
        Type stored: ``"uint8"`` or ``"int16"``; the table's type where one is applied.
    qmin, qmax : int
        Clip bounds.
    residual : bool
        A second term is added.
    table : bool
        The clipped value indexes a table of 256 entries.
    slopes : bool
        Negative accumulators have a multiplier of their own; there is no second term then.
    acc_zero_point : int
        What the accumulator is compared with where there are slopes; ``offset'`` lacks z_a M then.
    narrow : bool
        Sums of 64 bits are known to fit 32 once they are shifted, and are clipped there: where
        64-bit lanes cannot be compared (AVX2) MobileNetV2 takes 0.86 of the time.
    ties_to_even : bool
    zero_point : int
        z where ties go to even; else it is a part of ``offset'``.
    """

    compute_dtype: str
    out_dtype: str
    qmin: int
    qmax: int
    residual: bool = False
    table: bool = False
    slopes: bool = False
    acc_zero_point: int = 0
    narrow: bool = False
    ties_to_even: bool = False
    zero_point: int = 0

    def apply(
        self,
        acc: tirx.PrimExpr,
        multiplier: tirx.PrimExpr,
        offset: tirx.PrimExpr,
        shift: tirx.PrimExpr,
        residual: tuple[tirx.PrimExpr, tirx.PrimExpr] | None = None,
        table: te.Tensor | None = None,
        negative: tirx.PrimExpr | None = None,
        narrows: bool = False,
    ) -> tirx.PrimExpr:
        """Return the stored value of one element.

        Parameters
        ----------
        acc : int32
            Accumulator with its bias.
        multiplier, offset, shift : compute_dtype
            M, offset' and s of its channel.
        residual : (value, multiplier), optional
            Integer of any type, and M_r.
        table : Tensor of 256 entries, optional
        negative : compute_dtype, optional
            M_n.
        narrows : bool
            Clip to 16 bits first; see `isa.DotProduct`.
        """
        dtype = self.compute_dtype
        if negative is not None:
            acc = acc.astype("int32") - self.acc_zero_point
            multiplier = tirx.Select(acc >= 0, multiplier, negative)
        if dtype == "int64":
            # both factors are known to fit 32 bits: LLVM then multiplies 32 by 32 bits (1.4-1.8x)
            multiplier = multiplier.astype("int32").astype(dtype)
        total = acc.astype(dtype) * multiplier + offset
        if residual is not None:
            value, factor = residual
            if dtype == "int64":
                factor = factor.astype("int32").astype(dtype)
            total = total + value.astype(dtype) * factor
        if self.ties_to_even:
            one = tirx.const(1, dtype)
            total = total + ((one << (shift - one)) - one + ((total >> shift) & one))
        steps = total >> shift
        if self.narrow:
            dtype = "int32"
            steps = steps.astype(dtype)
        if self.zero_point:
            steps = steps + tirx.const(self.zero_point, dtype)
        if narrows and self.out_dtype == "uint8" and table is None:
            steps = _clipped(steps, -(1 << 15), (1 << 15) - 1, dtype).astype("int16")
            dtype = "int16"
        clipped = _clipped(steps, self.qmin, self.qmax, dtype)
        if table is not None:
            return table[clipped.astype("int32")]
        return clipped.astype(self.out_dtype)


def _clipped(x: tirx.PrimExpr, low: int, high: int, dtype: str) -> tirx.PrimExpr:
    return te.max(te.min(x, tirx.const(high, dtype)), tirx.const(low, dtype))


@dataclass(frozen=True)
class FloatEpilogue:
    """What the float32 kernels of a float build do instead: ``clip(acc + residual, low, high)``.

    Parameters
    ----------
    low, high : float
        Bounds of the clip; infinite where there is none.
    residual : bool
        A tensor of the output's shape is added.
    """

    low: float = -math.inf
    high: float = math.inf
    residual: bool = False

    def apply(self, acc: tirx.PrimExpr, residual: tirx.PrimExpr | None = None) -> tirx.PrimExpr:
        """Return the stored value of one element, float32."""
        total = acc if residual is None else acc + residual
        if self.high < math.inf:
            total = te.min(total, tirx.const(self.high, "float32"))
        if self.low > -math.inf:
            total = te.max(total, tirx.const(self.low, "float32"))
        return total


def placeholders(
    epilogue: Epilogue | FloatEpilogue | None,
    channels: int,
    residual_shape: tuple[Any, ...] | None = None,
    residual_dtype: str = "uint8",
    positional: tuple[int, ...] | None = None,
) -> list[te.Tensor]:
    """Return the epilogue's input tensors, in argument order.

    Order: multiplier, offset, shift, then residual and residual multiplier, or the multiplier of
    negative accumulators, then the table; of a float epilogue only the residual.

    Parameters
    ----------
    epilogue : Epilogue, FloatEpilogue or None
        None: no epilogue, the raw accumulator is stored; no inputs.
    channels : int
        Length of the per-channel vectors.
    residual_shape : tuple, optional
        Shape of the residual tensor.
    positional : tuple, optional
        Shape of multipliers, offset and shift where they vary by position instead of by channel.
    """
    if epilogue is None:
        return []
    if isinstance(epilogue, FloatEpilogue):
        residual = te.placeholder(residual_shape, "float32", name="residual")
        return [residual] if epilogue.residual else []
    shape = positional if positional is not None else (channels,)
    dtype = epilogue.compute_dtype
    tensors = [te.placeholder(shape, dtype, name=n) for n in ("multiplier", "offset", "shift")]
    if epilogue.residual:
        tensors.append(te.placeholder(residual_shape, residual_dtype, name="residual"))
        tensors.append(te.placeholder(shape, dtype, name="residual_multiplier"))
    if epilogue.slopes:
        tensors.append(te.placeholder(shape, dtype, name="negative_multiplier"))
    if epilogue.table:
        tensors.append(te.placeholder((256,), epilogue.out_dtype, name="table"))
    return tensors


def apply_at(
    epilogue: Epilogue | FloatEpilogue | None,
    acc: tirx.PrimExpr,
    tensors: list[te.Tensor],
    index: tuple[tirx.PrimExpr, ...],
    *,
    narrows: bool = False,
) -> tirx.PrimExpr:
    """Return the stored value at ``index``, channel last, of an accumulator with its bias.

    ``tensors`` are those of `placeholders`, with parameters that vary by channel only; ``narrows``
    is that of `Epilogue.apply`.
    """
    if epilogue is None:
        return acc
    if isinstance(epilogue, FloatEpilogue):
        return epilogue.apply(acc, *(t[index] for t in tensors))
    channel = index[-1]
    multiplier, offset, shift = (t[channel] for t in tensors[:3])
    residual = (tensors[3][index], tensors[4][channel]) if epilogue.residual else None
    table = tensors[-1] if epilogue.table else None
    negative = tensors[3][channel] if epilogue.slopes else None
    return epilogue.apply(acc, multiplier, offset, shift, residual, table, negative, narrows)
