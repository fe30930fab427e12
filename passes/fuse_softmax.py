"""Write a softmax that an exporter took apart as one operator again (L0).

Before::

    e = exp(x - max(x, axis)); y = e / sum(e, axis)

After::

    y = softmax(x, axis)

Without the maximum the quotient is the same softmax. In pieces the exponentials would be rounded
to 8 bits, most of them to nothing; as one operator it is one float kernel. Requires canonical form
(`CanonicalizeOps`). Nothing is fused over several axes.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of


class _Fuser(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.producer = dict(bindings_of(self.function))

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, "relax.divide"):
            return None
        powers, total = value.args
        exponential, summed = self._made(powers, "relax.exp"), self._made(total, "relax.sum")
        if exponential is None or summed is None or not summed.args[0].same_as(powers):
            return None
        axis = _kept_axis(summed)
        if axis is None:
            return None
        x = exponential.args[0]
        shifted = self._made(x, "relax.subtract")
        if shifted is not None:
            greatest = self._made(shifted.args[1], "relax.max")
            same = greatest is not None and greatest.args[0].same_as(shifted.args[0])
            if greatest is not None and same and _kept_axis(greatest) == axis:
                x = shifted.args[0]
        call = relax.op.nn.softmax(self.lookup(x), axis)
        return relax.Call(call.op, call.args, call.attrs, call.ty_args, value.span)

    def _made(self, operand: relax.Expr, name: str) -> relax.Call | None:
        call = self.producer.get(operand) if isinstance(operand, relax.Var) else None
        return call if qop.is_call(call, name) else None


def _kept_axis(reduction: relax.Call) -> int | None:
    """Return the one axis that a reduction leaves with extent 1."""
    axes, rank = reduction.attrs.axis, len(reduction.args[0].ty.shape.values)
    if axes is None or len(axes) != 1 or not bool(reduction.attrs.keepdims):
        return None
    return int(axes[0]) % rank


@tvm.ir.transform.module_pass(opt_level=0, name="FuseSoftmax")
class FuseSoftmax:
    """Put softmaxes together (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with whole softmaxes."""
        return _Fuser(module).rewrite()
