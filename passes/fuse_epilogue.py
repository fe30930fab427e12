"""Fuse requantization, residual addition and lookup tables into the operator that accumulates (L2).

Before::

    acc = qconv2d(x, w, bias); y = requantize(acc, M, s, offset, r, M_r); z = table(y, values)

After::

    z = qconv2d(x, w, bias, M, s, offset, r, M_r, values) {epilogue: 1, residual: 1, values: 1}

The int32 accumulator then never leaves the registers of the kernel. Requires that the accumulator
(and the tensor before a table) has no other reader; otherwise the binding stays as it is.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses

EPILOGUE_ATTRS = (
    "residual_zero_point",
    "output_zero_point",
    "qmin",
    "qmax",
    "slopes",
    "ties_to_even",
    "axis",
    "compute_dtype",
    "out_dtype",
)


class _Fuser(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        self.order = {var: i for i, (var, _) in enumerate(bindings_of(self.function))}
        self.fused: dict[relax.Var, relax.Call] = {}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, qop.REQUANTIZE):
            return self._requantize(var, value)
        if qop.is_call(value, qop.TABLE):
            return self._table(var, value)
        return None

    def _only_reader(self, operand: Any, *names: str) -> relax.Call | None:
        call = self.producer.get(operand) if isinstance(operand, relax.Var) else None
        return call if qop.is_call(call, *names) and self.uses[operand] == 1 else None

    def _requantize(self, var: relax.Var, value: relax.Call) -> relax.Call | None:
        source = self._only_reader(value.args[0], *qop.ACCUMULATING)
        if source is None:
            return None
        epilogue = qop.attributes(value)
        residual = len(value.args) > 5
        operands = [source, value.args[4]] if residual else []
        if not all(tvm_ffi.structural_equal(x.ty.shape, var.ty.shape) for x in operands):
            return None  # a sum that broadcasts
        args = [self.lookup(a) for a in (*source.args, *value.args[1:])]
        attrs = qop.attributes(source) | {k: epilogue[k] for k in EPILOGUE_ATTRS if k in epilogue}
        attrs |= {"epilogue": 1, "residual": int(residual), "values": 0}
        self.fused[var] = qop.emit(source.op.name, args, attrs, source.span)
        return self.fused[var]

    def _table(self, var: relax.Var, value: relax.Call) -> relax.Call | None:
        operand = value.args[0]
        source = self.fused.get(operand)
        if source is None or self.uses[operand] != 1 or qop.is_float(value):
            return None
        attrs = qop.attributes(source)
        if qop.attributes(value)["out_dtype"] == "int8":
            return None  # what is looked up has the type of what is found, and needs 0 to 255
        args, values = list(source.args), value.args[1]
        if attrs["values"]:  # an epilogue has one table: that of both
            first, second = (qop.constant_array(a) for a in (args.pop(), values))
            values = qop.constant(second[first])
        attrs |= {"values": 1, "out_dtype": qop.attributes(value)["out_dtype"]}
        self.fused[var] = qop.emit(source.op.name, [*args, values], attrs, source.span)
        return self.fused[var]


@tvm.ir.transform.module_pass(opt_level=0, name="FuseEpilogue")
class FuseEpilogue:
    """Fuse what follows an accumulation into it (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with fused epilogues; superseded bindings are dead and removed."""
        return _Fuser(module).rewrite()
