"""The operands of an epilogue, folded as kernels take them (`schedules.epilogue`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvmquant.arithmetic import Array
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.families import Vectors


@dataclass(frozen=True)
class FoldedEpilogue:
    """An epilogue and its operands.

    Parameters
    ----------
    static : Epilogue
    vectors : tuple of array
        Multiplier, folded offset and shift; then the multiplier of the second term, or that of
        negative accumulators. Of the type that the epilogue computes in, as they vary.
    residual : Expr or None
        The second term.
    table : Expr or None
    """

    static: Epilogue
    vectors: tuple[Array, ...]
    residual: relax.Expr | None = None
    table: relax.Expr | None = None

    @property
    def residual_dtype(self) -> str:
        """Type of the second term."""
        return "uint8" if self.residual is None else dtype_of(self.residual)

    def operands(self) -> list[relax.Expr]:
        """Return the arguments of a kernel whose vectors have the least shape that holds them."""
        found = [qop.constant(v) for v in np.broadcast_arrays(*self.vectors)]
        if self.residual is not None:
            found.insert(3, self.residual)
        return found if self.table is None else [*found, self.table]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the vectors of `operands`."""
        return np.broadcast_shapes(*(v.shape for v in self.vectors))

    def per_channel(self, channels: int) -> Vectors:
        """Return the vectors with one entry for each output channel."""
        multiplier, offset, shift, *other = (np.broadcast_to(v, (channels,)) for v in self.vectors)
        named = {"residual" if self.static.residual else "negative": v for v in other}
        table = None if self.table is None else qop.constant_array(self.table)
        return Vectors(multiplier, offset, shift, **named, table=table)


def folded(attrs: dict[str, Any], args: Sequence[relax.Expr]) -> FoldedEpilogue:
    """Fold zero points and the rounding constant into one offset.

    Parameters
    ----------
    attrs : dict
        Of the operator with the epilogue.
    args : sequence of Expr
        Multiplier, shift and offset; then the second term and its multiplier, or the multiplier of
        negative accumulators; then the table.
    """
    residual, table, slopes = (bool(attrs.get(k, 0)) for k in ("residual", "values", "slopes"))
    multiplier, shift, offset = (qop.constant_array(a).astype(np.int64) for a in args[:3])
    even = bool(attrs.get("ties_to_even", 0))
    total = offset
    if not even:
        total = offset + (np.int64(1) << (shift - 1)) + (attrs["output_zero_point"] << shift)
    acc_zero_point = attrs.get("acc_zero_point", 0)
    if not slopes:
        total = total - acc_zero_point * multiplier
    vectors = [multiplier, total, np.maximum(shift, 1)]
    if residual:
        vectors.append(qop.constant_array(args[4]).astype(np.int64))
        vectors[1] = total - attrs["residual_zero_point"] * vectors[3]
    if slopes:
        vectors.append(qop.constant_array(args[3]).astype(np.int64))
    dtype = attrs["compute_dtype"]
    second = dtype_of(args[3]) if residual else None
    static = Epilogue(
        dtype, attrs["out_dtype"], attrs["qmin"], attrs["qmax"], residual, table, slopes,
        acc_zero_point if slopes else 0, dtype == "int64" and _fits_shifted(vectors, second),
        even, attrs["output_zero_point"] if even else 0,
    )  # fmt: skip
    return FoldedEpilogue(
        static,
        tuple(v.astype(dtype) for v in vectors),
        args[3] if residual else None,
        args[-1] if table else None,
    )


def _fits_shifted(vectors: Sequence[Array], second: str | None) -> bool:
    """Whether equation (3) fits 32 bits before it is clipped, whatever the accumulator holds.

    Parameters
    ----------
    vectors : sequence of int64 arrays
        As of `FoldedEpilogue`.
    second : str or None
        Type of the second term, where there is one.
    """
    multiplier, offset, shift, *other = (v.astype(np.float64) for v in vectors)
    total = np.abs(multiplier) * 2.0**31 + np.abs(offset)
    for factor in other:
        reach = 2.0**31 if second is None else float(np.iinfo(second).max) + 1.0
        total = total + np.abs(factor) * reach
    return bool(np.all(total < np.exp2(shift + 30.0)))


def epilogue_of(attrs: dict[str, Any], args: Sequence[relax.Expr]) -> FoldedEpilogue | None:
    """Return `folded`, or None where the operator has no epilogue."""
    return folded(attrs, args) if args else None


def unfolded(epilogue: FoldedEpilogue | None) -> tuple[Epilogue | None, list[relax.Expr], Any]:
    """Return the static epilogue, its `operands` and their shape; of no epilogue, None, (1,)."""
    if epilogue is None:
        return None, [], (1,)
    return epilogue.static, epilogue.operands(), epilogue.shape
