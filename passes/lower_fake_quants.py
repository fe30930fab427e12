"""Write the fake_quants that a float graph brings as float operators, for a float build (L0).

Before, a model's own rounding::

    lv = fake_quant(x, scale, zero_point) {qmin, qmax}; lv1 = conv2d(lv, fake_quant(w, scale_w))
    lv = fake_quant(x, scale) {format: "ubinary"}

After::

    lv = clip(round(x / scale), qmin - zero_point, qmax - zero_point) * scale; lv1 = conv2d(lv, w)
    lv = where(x >= 0, scale, -scale)

Weights that came with a model lie on their levels already. Ties go to even.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvmquant.formats import UBINARY
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter


class _Writer(DataflowRewriter):
    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value)
        if attrs["role"] == qop.WEIGHT:
            return self.lookup(value.args[0])
        x = self.lookup(value.args[0])
        scale = qop.constant_array(value.args[1]).astype(np.float32)
        if attrs["format"] == UBINARY.name:
            compared = relax.op.greater if attrs["strict"] else relax.op.greater_equal
            above = self.emit(compared(x, qop.constant(np.float32(0.0))))
            ends = [qop.constant(end) for end in (scale.reshape(()), -scale.reshape(()))]
            return relax.op.where(above, *ends)
        rank = len(value.ty.shape.values)
        if scale.size > 1:
            scale = scale.reshape([-1 if i == attrs["axis"] % rank else 1 for i in range(rank)])
        zero = int(qop.constant_array(value.args[2]).reshape(-1)[0])
        steps = self.emit(relax.op.round(self.emit(relax.op.divide(x, qop.constant(scale)))))
        kept = self.emit(relax.op.clip(steps, attrs["qmin"] - zero, attrs["qmax"] - zero))
        return relax.op.multiply(kept, qop.constant(scale))


@tvm.ir.transform.module_pass(opt_level=0, name="LowerFakeQuants")
class LowerFakeQuants:
    """Replace fake_quants by float operators (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with standard operators only."""
        return _Writer(module).rewrite()
