"""Apply constants and slopes of channels to the parts of a concatenation, not to the whole (L0).

Before::

    lv = concat((conv2d(x, w1) + x, conv2d(x, w2) + x)); y = prelu(lv + c, s)

After::

    y = concat((prelu((conv2d(x, w1) + x) + c1, s1), prelu((conv2d(x, w2) + x) + c2, s2)))

so that they belong to what sums up each part, and are no operators of their own behind the
concatenation, which then costs nothing. Requires that every part is a layer or a sum, which only
the concatenation reads, and nothing else the concatenation. Each number is computed as before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses, used_vars
from tvmquant.passes.region_operators import keeps_shape
from tvmquant.passes.regions.slope import PRELU

CONCAT = "relax.concat"
ARITHMETIC = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")
SUMMING = (*qop.FLOAT_CONTRACTIONS, "relax.add", "relax.subtract")


class _Distributor(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        # by the last call behind a concatenation: that, and all the calls
        self.chains: dict[relax.Var, tuple[relax.Call, list[relax.Call]]] = {}
        self._find_chains()

    def _find_chains(self) -> None:
        begun: dict[relax.Var, tuple[relax.Call, list[relax.Call]]] = {}
        for var, value in self.producer.items():
            if not isinstance(value, relax.Call):
                continue
            if qop.is_call(value, CONCAT) and self._is_of_sums(value):
                begun[var] = value, []
                continue
            operands = used_vars(value)
            if len(operands) != 1 or operands[0] not in begun or self.uses[operands[0]] != 1:
                continue
            concat, calls = begun[operands[0]]
            if _by_channel(value, operands[0], _axis(concat)):
                begun[var] = self.chains[var] = concat, [*calls, value]
                self.chains.pop(operands[0], None)

    def _is_of_sums(self, concat: relax.Call) -> bool:
        if not isinstance(concat.args[0], relax.Tuple):
            return False
        axis = _axis(concat)
        return all(
            self.uses[part] == 1
            and qop.is_call(self.producer.get(part), *SUMMING)
            and isinstance(part.ty.shape.values[axis], tvm.tirx.IntImm)
            for part in concat.args[0].fields
        )

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if var not in self.chains:
            return None
        concat, calls = self.chains[var]
        axis, end, parts = _axis(concat), 0, []
        for field in concat.args[0].fields:
            begin, end = end, end + int(field.ty.shape.values[axis])
            part = self.lookup(field)
            for call in calls:
                args = [_cut(a, begin, end, axis, call) for a in call.args]
                args = [part if a is None else a for a in args]
                named = relax.Call(call.op, args, call.attrs, call.ty_args, call.span)
                part = self.emit(named, str(var.name))
            parts.append(part)
        joined = relax.op.concat(parts, axis)
        return relax.Call(joined.op, joined.args, joined.attrs, joined.ty_args, concat.span)


def _axis(concat: relax.Call) -> int:
    return int(concat.attrs.axis) % len(concat.ty.shape.values)


def _by_channel(call: relax.Call, operand: relax.Var, axis: int) -> bool:
    """Whether a call computes each element from itself and constants."""
    if qop.is_call(call, PRELU):
        known = qop.constant_array(call.args[1]) is not None
        return known and int(call.attrs.axis) % len(operand.ty.shape.values) == axis
    return qop.is_call(call, *ARITHMETIC) and keeps_shape(call, operand)


def _cut(arg: relax.Expr, begin: int, end: int, axis: int, call: relax.Call) -> relax.Expr | None:
    """Return the channels of a constant that belong to a part; None for the tensor."""
    array: Any = qop.constant_array(arg)
    if array is None:
        return None
    if qop.is_call(call, PRELU):
        return qop.constant(array if array.size == 1 else array[begin:end])
    place = axis - (len(call.ty.shape.values) - array.ndim)
    if place < 0 or array.shape[place] == 1:
        return arg
    return qop.constant(np.take(array, range(begin, end), place))


@tvm.ir.transform.module_pass(opt_level=0, name="ApplyBeforeConcat")
class ApplyBeforeConcat:
    """Apply constants of channels before concatenations (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with constants applied to parts."""
        distributor = _Distributor(module)
        return distributor.rewrite() if distributor.chains else module
