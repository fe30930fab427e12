"""Layers of activations of 16 bits, as models may bring them: a sum for each byte of these.

With ``q + 2**15 = 256 h + l``, ``sum q w = 256 sum h w + sum l w - 2**15 sum w``: two layers of
bytes, whose sums are two terms of one rounding. Both bytes are requantizations of q, exact ones:
``h = (q + 2**15 - 2**7 + 2**7) >> 8`` and ``l = (2 q + 2**16 - 512 h + 1) >> 1``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tvmquant.formats import UINT8
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.accumulator import Contraction, Quantized, Term
from tvmquant.passes.region_operators import along, output_axis
from tvmquant.passes.regions.contraction import dot_span, emitted_sums
from tvmquant.passes.regions.window_sums import exact_sums, has_zero_points

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer

# What 16-bit containers are moved by.
OFFSET = 2**15


def sums_of_bytes(integerizer: Integerizer, layer: Contraction) -> tuple[Term, Term]:
    """Return the terms of a layer that reads 16 bits: of the high bytes, and of the low ones."""
    x = layer.x
    high = _high_byte(integerizer, x)
    low = _low_byte(integerizer, x, high)
    axis, rank = output_axis(layer.call), len(layer.call.ty.shape.values)
    scale = along(x.scale * layer.weight.scale, axis, rank)
    of_low, name = replace(layer, x=low), f"{span_name(layer.call)}.low_bytes"
    first = Term(scale * 256.0, np.zeros_like(scale), contraction=replace(layer, x=high))
    if has_zero_points(layer.weight):
        return first, exact_sums(integerizer, of_low, scale, name)
    expr = emitted_sums(integerizer, of_low, name)
    span = dot_span(layer.weight.round(layer.weight.scale), low)
    bound = along(np.maximum(*np.abs(span)), axis, rank)
    return first, Term(scale, bound, expr=expr)


def _high_byte(integerizer: Integerizer, x: Quantized) -> Quantized:
    args = [x.expr, *_numbers(1, 8, OFFSET - 128)]
    zero = (x.zero_point + OFFSET) >> 8
    return _byte(integerizer, x, args, zero, "high_byte")


def _low_byte(integerizer: Integerizer, x: Quantized, high: Quantized) -> Quantized:
    args = [x.expr, *_numbers(2, 1, 2 * OFFSET), high.expr, *_numbers(-512)]
    return _byte(integerizer, x, args, (x.zero_point + OFFSET) & 255, "low_byte")


def _numbers(*values: int) -> list[relax.Expr]:
    return [qop.constant(np.asarray([value], np.int32)) for value in values]


def _byte(
    integerizer: Integerizer, x: Quantized, args: list[relax.Expr], zero_point: int, name: str
) -> Quantized:
    """Emit one byte; it has the scale of the tensor, whose factor its layer's terms know."""
    attrs = {
        "acc_zero_point": 0, "residual_zero_point": 0, "output_zero_point": 0, "qmin": 0,
        "qmax": 255, "axis": 1, "compute_dtype": "int32", "out_dtype": "uint8",
        "id": f"{getattr(x.expr, 'name', 'x')}.{name}",
    }  # fmt: skip
    expr = integerizer.emit(qop.emit(qop.REQUANTIZE, args, attrs))
    return Quantized(expr, x.scale, zero_point, 0, 255, UINT8, imported=True)
