"""What happens to an int32 accumulator before it is stored: one definition for all kernels.

With ``M``, ``s`` and ``offset`` per channel, equation (3) of `tvmquant.arithmetic` in the form

    t = acc * M + r * M_r + offset'            offset' = offset - z_a M - z_r M_r + 2**(s-1)
    q = clip((t >> s) + z, qmin, qmax)

where ``offset'`` is folded when the graph is lowered, so that a kernel spends one multiplication
per term, one addition, one shift and the clip. In ``int32`` where range analysis proved that t
fits (16 lanes of 512 bits), else in ``int64``.
"""

from __future__ import annotations

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
    zero_point, qmin, qmax : int
        Output zero point and clip bounds.
    residual : bool
        A second term is added.
    table : bool
        The clipped value indexes a table of 256 entries.
    """

    compute_dtype: str
    out_dtype: str
    zero_point: int
    qmin: int
    qmax: int
    residual: bool = False
    table: bool = False

    def apply(
        self,
        acc: tirx.PrimExpr,
        multiplier: tirx.PrimExpr,
        offset: tirx.PrimExpr,
        shift: tirx.PrimExpr,
        residual: tuple[tirx.PrimExpr, tirx.PrimExpr] | None = None,
        table: te.Tensor | None = None,
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
        """
        dtype = self.compute_dtype
        if dtype == "int64":
            # both factors are known to fit 32 bits: LLVM then multiplies 32 by 32 bits (1.4-1.8x)
            multiplier = multiplier.astype("int32").astype(dtype)
        total = acc.astype(dtype) * multiplier + offset
        if residual is not None:
            value, factor = residual
            if dtype == "int64":
                factor = factor.astype("int32").astype(dtype)
            total = total + value.astype(dtype) * factor
        steps = (total >> shift) + tirx.const(self.zero_point, dtype)
        clipped = te.max(te.min(steps, tirx.const(self.qmax, dtype)), tirx.const(self.qmin, dtype))
        if table is not None:
            return table[clipped.astype("int32")]
        return clipped.astype(self.out_dtype)


def placeholders(
    epilogue: Epilogue | None,
    channels: int,
    residual_shape: tuple[Any, ...] | None = None,
    residual_dtype: str = "uint8",
    positional: tuple[int, ...] | None = None,
) -> list[te.Tensor]:
    """Return the epilogue's input tensors, in argument order.

    Order: multiplier, offset, shift, then residual and residual multiplier, then the table.

    Parameters
    ----------
    epilogue : Epilogue or None
        None: no epilogue, the raw accumulator is stored; no inputs.
    channels : int
        Length of the per-channel vectors.
    residual_shape : tuple, optional
        Shape of the residual tensor.
    positional : tuple, optional
        Shape of multiplier, offset and shift where they vary by position instead of by channel.
    """
    if epilogue is None:
        return []
    shape = positional if positional is not None else (channels,)
    dtype = epilogue.compute_dtype
    tensors = [te.placeholder(shape, dtype, name=n) for n in ("multiplier", "offset", "shift")]
    if epilogue.residual:
        tensors.append(te.placeholder(residual_shape, residual_dtype, name="residual"))
        tensors.append(te.placeholder((channels,), dtype, name="residual_multiplier"))
    if epilogue.table:
        tensors.append(te.placeholder((256,), epilogue.out_dtype, name="table"))
    return tensors
