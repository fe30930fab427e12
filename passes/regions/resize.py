"""Linear resizes of tensors whose scales came with the model: finer steps, to round once.

A mover keeps the steps of what it resizes, and rounds to these. What the model then rounds to a
scale of its own would be rounded twice. So the integers become multiples of ``2**-F`` of a step,
which is exact, are resized as such, and begin an accumulator::

    t = requantize(x) = (x * 2**(F + 1) + 1) >> 1                      int32, of 24 bits
    y = resize2d(t)                                                    scale / 2**F
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.accumulator import Accumulator, Quantized, Term
from tvmquant.passes.region_kind import Form, RegionKind, Value
from tvmquant.passes.region_operators import is_mover
from tvmquant.resize import RESIZED_BITS

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder


class ResizeRegion(RegionKind):
    """An accumulator, begun by a linear resize."""

    operators = frozenset({"relax.image.resize2d"})
    takes_wide = True

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return an accumulator where what is resized rounds as models of others say."""
        even = all(root in finder.even for root in finder.roots(call.args[0]))
        return Form("accumulator") if even and _is_linear(call) else None

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Resize the integers in finer steps."""
        x = values[0]
        if not isinstance(x, Quantized) or not x.imported or not _is_linear(call):
            return None
        x = integerizer.with_one_scale(x, call)
        bits = RESIZED_BITS - (8 if x.dtype == "uint8" else 16)
        attrs = {
            "acc_zero_point": x.zero_point, "residual_zero_point": 0, "output_zero_point": 0,
            "qmin": -(1 << RESIZED_BITS), "qmax": 1 << RESIZED_BITS, "axis": 1,
            "compute_dtype": "int32", "out_dtype": "int32", "id": f"{span_name(call)}.finer",
        }  # fmt: skip
        numbers = (np.asarray([value], np.int32) for value in (2 << bits, 1, 0))
        args = [x.expr, *(qop.constant(number) for number in numbers)]
        finer = integerizer.emit(qop.emit(qop.REQUANTIZE, args, attrs, call.span))
        new = relax.Call(call.op, [finer, *call.args[1:]], call.attrs, call.ty_args, call.span)
        ones = np.ones((1,) * x.rank)
        scale = ones * x.scale * 2.0**-bits
        bound = np.full(ones.shape, x.bound << bits)
        term = Term(scale, bound, expr=integerizer.emit(new))
        return Accumulator((term,), np.zeros(ones.shape))


def _is_linear(call: relax.Call) -> bool:
    return is_mover(call) and str(call.attrs.method) == "linear"
