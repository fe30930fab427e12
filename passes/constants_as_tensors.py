"""Constants that stand beside tensors, as tensors: what rounds these rounds them alike."""

from __future__ import annotations

import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter
from tvmquant.passes.region_operators import EXTREMES


def constants_as_tensors(module: tvm.IRModule) -> tvm.IRModule:
    """Bind the constants that a concat joins with tensors, which are then quantized like these.

    So are constants that vary and bound a tensor: those of one number are clips, or functions.
    """
    return _Binder(module).rewrite()


class _Binder(DataflowRewriter):
    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, *EXTREMES):
            return self._bounded(value)
        if not qop.is_call(value, "relax.concat") or not isinstance(value.args[0], relax.Tuple):
            return None
        fields = [self._tensor(field, value) for field in value.args[0].fields]
        return relax.Call(value.op, [relax.Tuple(fields)], value.attrs, None, value.span)

    def _bounded(self, call: relax.Call) -> relax.Call | None:
        arrays = [qop.constant_array(operand) for operand in call.args]
        if all(array is None or array.size == 1 for array in arrays):
            return None
        args = [self._tensor(operand, call) for operand in call.args]
        return relax.Call(call.op, args, call.attrs, None, call.span)

    def _tensor(self, field: relax.Expr, call: relax.Call) -> relax.Expr:
        if not isinstance(field, tvm.ir.GenericConst) or not qop.is_float(field):
            return self.lookup(field)
        whole = relax.op.broadcast_to(field, field.ty.shape)
        return self.emit(relax.Call(whole.op, whole.args, whole.attrs, None, call.span), "constant")
