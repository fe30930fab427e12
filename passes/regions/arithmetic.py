"""Clips and constants that accumulators take in, and sums and products of two tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import Array
from tvmquant.formats import MOST_BITS
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name, used_vars
from tvmquant.passes.accumulator import Accumulator, Quantized, Term
from tvmquant.passes.elementwise import scalar_bound
from tvmquant.passes.region_kind import Form, RegionKind, Value
from tvmquant.passes.region_operators import (
    is_linear,
    is_scalar,
    keeps_shape,
    output_axis,
)
from tvmquant.passes.regions.requantization import as_accumulator
from tvmquant.passes.scale_factors import varying_axes

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder


class ClipRegion(RegionKind):
    """A clip at the end of an accumulator."""

    operators = frozenset({"relax.nn.relu", "relax.clip"})
    takes_wide = True

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return a clipped accumulator."""
        operand = call.args[0]
        form = finder.form(operand)
        if form.kind in ("accumulator", "sloped", "clipped") and finder.absorbs(operand):
            return replace(form, kind="clipped")
        if finder.is_wide(operand):  # of 8 bits it is a table
            return Form("clipped")
        return None

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Clip an accumulator."""
        region = values[0]
        if isinstance(region, Quantized) and region.format.bits > MOST_BITS:
            region = as_accumulator(region)
        if not isinstance(region, Accumulator):
            return None
        if qop.is_call(call, "relax.nn.relu"):
            return region.clipped(0.0, math.inf)
        return region.clipped(scalar_bound(call.args[1]), scalar_bound(call.args[2]))


class ConstantRegion(RegionKind):
    """An accumulator times and plus constants, or a tensor times and plus constants that vary."""

    operators = frozenset({"relax.add", "relax.subtract", "relax.multiply", "relax.divide"})
    takes_wide = True

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return the accumulator, which takes the constants in, or begin one."""
        tensors = used_vars(call)
        if len(tensors) != 1 or not keeps_shape(call, tensors[0]):
            return None
        tensor, form = tensors[0], finder.form(tensors[0])
        constant, first = _constant(call)
        absorbs = finder.absorbs(tensor)
        if form.kind == "accumulator" and absorbs and is_linear(call, constant, first, form.axis):
            return form
        shifts = qop.is_call(call, "relax.add") or (
            qop.is_call(call, "relax.subtract") and not first
        )
        linear = is_linear(call, constant, first, form.axis)
        if form.kind == "sloped" and shifts and linear and absorbs:
            return form
        rescales = qop.is_call(call, "relax.multiply", "relax.divide") and not first
        positive = is_scalar(constant) and float(constant.reshape(())) > 0
        if rescales and positive and form.kind in ("sloped", "clipped") and absorbs:
            return form
        # one number is a part of a table, of 8 bits only
        if not is_linear(call, constant, first) or (
            is_scalar(constant) and not finder.is_wide(tensor)
        ):
            return None
        finder.request(tensor, qop.ACTIVATION)
        return Form("accumulator")

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Take constants into a region."""
        tensors = used_vars(call)
        if len(tensors) != 1 or not keeps_shape(call, tensors[0]):
            return None
        constant, first = _constant(call)
        begins = isinstance(values[0], Quantized) and (
            not is_scalar(constant) or values[0].format.bits > MOST_BITS
        )
        if not begins and not isinstance(values[0], Accumulator):
            return None
        region = as_accumulator(values[0])
        layer = region.terms[0].contraction
        axis = None if layer is None else output_axis(layer.call)
        if not is_linear(call, constant, first, axis):
            return None
        constant = of_rank(constant.astype(np.float64), region.bias.ndim)
        if qop.is_call(call, "relax.add"):
            return region.shifted(constant)
        if qop.is_call(call, "relax.subtract"):
            return region.shifted(-constant)
        return region.scaled(constant if qop.is_call(call, "relax.multiply") else 1.0 / constant)


class SumRegion(RegionKind):
    """The sum or difference of two tensors, one of which may be an accumulator."""

    operators = frozenset({"relax.add", "relax.subtract"})
    takes_wide = True

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return an accumulator with its second term."""
        tensors = used_vars(call)
        if len(tensors) != 2:
            return None
        open_terms = [
            v
            for v in tensors
            if finder.form(v).kind == "accumulator"
            and not finder.form(v).residual
            and finder.absorbs(v)
        ]
        # a sum that broadcasts is no epilogue: what it adds is stored before it, in 8 bits
        alike = all(keeps_shape(call, v) for v in tensors)
        # without a scale for either both stay open, which layers cannot
        plain = alike and all(finder.form(v).axis is None for v in open_terms)
        if plain and not finder.calibrates and len(set(open_terms)) == 2:
            return Form("accumulator", residual=True)
        # a layer ends in the sum, and reads the other tensor while it does
        layers = [v for v in open_terms if finder.form(v).axis is not None]
        kept = (layers or open_terms)[-1] if open_terms and alike else None
        for operand in tensors:
            if kept is None or not operand.same_as(kept):
                finder.request(operand, qop.ACTIVATION)
        axis = None if kept is None else finder.form(kept).axis
        return Form("accumulator", residual=True, axis=axis)

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Add the terms of both."""
        if len(values) != 2:
            return None
        left, right = values
        rank = len(call.ty.shape.values)
        first, second = (_addend(integerizer, v, other, call) for v, other in
                         ((left, right), (right, left)))  # fmt: skip
        if qop.is_call(call, "relax.subtract"):
            second = second.scaled(-np.ones((1,) * rank))
        if second.terms[0].contraction is not None:
            first, second = second, first
        return first.plus(second)


class ProductRegion(RegionKind):
    """The product of two tensors."""

    operators = frozenset({"relax.multiply"})

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Begin an accumulator."""
        tensors = used_vars(call)
        if len(tensors) != 2:
            return None
        for operand in tensors:
            finder.request(operand, qop.ACTIVATION)
        return Form("accumulator")

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Multiply integers."""
        if len(values) != 2 or not all(isinstance(v, Quantized) for v in values):
            return None
        left, right = values
        attrs = {"a_zero_point": left.zero_point, "b_zero_point": right.zero_point,
                 "out_dtype": "int32", "id": span_name(call)}  # fmt: skip
        expr = integerizer.emit(qop.emit(qop.QMULTIPLY, [left.expr, right.expr], attrs, call.span))
        rank = len(call.ty.shape.values)
        scale = of_rank(left.scales, rank) * of_rank(right.scales, rank)
        bound = np.full((1,) * rank, left.bound * right.bound)
        return Accumulator((Term(scale, bound, expr=expr),), np.zeros((1,) * rank))


def of_rank(array: Array, rank: int) -> Array:
    """Add leading axes."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _constant(call: relax.Call) -> tuple[Array, bool]:
    """Return the constant beside a tensor, and whether it comes first."""
    first = isinstance(call.args[0], tvm.ir.GenericConst)
    return qop.constant_array(call.args[0 if first else 1]), first


def _addend(integerizer: Integerizer, value: Value, other: Value, call: relax.Call) -> Accumulator:
    """Return an operand of a sum, with the rank of the sum.

    Beside a contraction a tensor may have factors along its output channels only.
    """
    layer = other.terms[0].contraction if isinstance(other, Accumulator) else None
    if isinstance(value, Quantized) and value.factors is not None and layer is not None:
        axis = output_axis(layer.call) - (len(call.ty.shape.values) - value.rank)
        if varying_axes(value.factors) != [axis]:
            value = integerizer.with_one_scale(value, call)
    return as_accumulator(value).of_rank(len(call.ty.shape.values))
