"""Round a tensor twice where a residual connection shares it with a narrow layer (still L1).

Before::

    x_q = fake_quant(x) {id: "x", format: "uint4"}
    lv = conv2d(x_q, w_q); lv1 = add(lv, x_q)

After, with residuals of 8 bits::

    x_r = fake_quant(x) {id: "x.residual", format: "uint8"}
    x_q = fake_quant(x_r) {id: "x", format: "uint4"}
    lv = conv2d(x_q, w_q); lv1 = add(lv, x_r)

What layers read, directly or moved, stays narrow, and everything else reads the wide tensor: sums
along a chain of residual connections then lose nothing to the width of the layers beside them.

Requires an annotated graph whose formats are assigned (`AssignBitWidths`) and that is not
calibrated yet. Scales that came with the model stay as they are, and so do tensors that meet others
in a concat: it copies the integers of all. `InsertRequantize` rounds the narrow tensor from the
integers of the wide one.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.formats import Uniform
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, used_vars
from tvmquant.passes.region_operators import is_mover

# Behind the id of what is split.
RESIDUAL = ".residual"


class _Splitter(DataflowRewriter):
    def __init__(self, module: tvm.IRModule, bits: int) -> None:
        super().__init__(module)
        self.format = Uniform(bits, signed=False)
        self.layer_reads, self.others_read = _readers(self.function)
        # of what was split: the wide tensor, by the old variable of the narrow one
        self.wide: dict[relax.Var, relax.Var] = {}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, qop.FAKE_QUANT) and self._splits(var, qop.attributes(value)):
            return self._split(var, value)
        if not isinstance(value, relax.Call) or _reads_as_layer(value):
            return None
        if not any(v in self.wide for v in used_vars(value)):
            return None
        if is_mover(value) and var in self.layer_reads:
            return None  # it moves the narrow tensor
        args = [self._widened(arg) for arg in value.args]
        return relax.Call(value.op, args, value.attrs, value.ty_args, value.span)

    def visit_output(self, expr: relax.Expr) -> relax.Expr:
        return self._widened(expr)

    def _widened(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._widened(field) for field in expr.fields])
        return self.wide[expr] if expr in self.wide else self.lookup(expr)

    def _splits(self, var: relax.Var, attrs: dict[str, Any]) -> bool:
        return (
            attrs["role"] == qop.ACTIVATION
            and not attrs["calibrated"]
            and not attrs["group"]
            and formats.parse(attrs["format"]).bits < self.format.bits
            and var in self.layer_reads
            and var in self.others_read
        )

    def _split(self, var: relax.Var, call: relax.Call) -> relax.Call:
        attrs = qop.attributes(call)
        names = {name: f"{attrs[name]}{RESIDUAL}" for name in ("id", "range_of") if attrs[name]}
        x, *constants = (self.lookup(arg) for arg in call.args)
        wide = qop.emit(
            qop.FAKE_QUANT, [x, *constants], attrs | names | {"format": self.format.name}, call.span
        )
        self.wide[var] = self.emit(wide, f"{var.name}_r")
        return qop.emit(qop.FAKE_QUANT, [self.wide[var], *constants], attrs, call.span)


def _reads_as_layer(call: relax.Expr) -> bool:
    return qop.is_call(call, *qop.FLOAT_CONTRACTIONS)


def _readers(function: relax.Function) -> tuple[set[relax.Var], set[relax.Var]]:
    """Return what layers read, directly or moved, and what is read otherwise."""
    layers: set[relax.Var] = set()
    others = set(used_vars(function.body.body))
    for var, value in reversed(list(bindings_of(function))):
        moves = isinstance(value, relax.Var | relax.TupleGetItem)
        if moves or (isinstance(value, relax.Call) and is_mover(value)):
            kinds = [kind for kind in (layers, others) if var in kind]
        else:
            kinds = [layers if _reads_as_layer(value) else others]
        for kind in kinds:
            kind.update(used_vars(value))
    return layers, others


@tvm.ir.transform.module_pass(opt_level=0, name="SplitResidualWidth")
class SplitResidualWidth:
    """Give residual connections a width of their own (see the module's description).

    Parameters
    ----------
    bits : int
        2 to 8. What is no narrower is left alone.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with residual connections of so many bits."""
        return _Splitter(module, self.bits).rewrite()
