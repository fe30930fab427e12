"""Cast inputs of integers before they are moved, not after (L0).

Before::

    lv = permute_dims(pixels); lv1 = astype(lv, "float32")      # pixels: uint8

After::

    lv = astype(pixels, "float32"); lv1 = permute_dims(lv)

`AnnotateQuantization` then finds the cast of 8-bit integers where it begins a graph, and what moves
them is a mover like any other. Every integer type is cast element by element, so the values are
the same. Nothing else changes.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of
from tvmquant.passes.elementwise import CAST
from tvmquant.passes.region_operators import RESHAPES

MOVERS = (*RESHAPES, "relax.strided_slice")


class _Caster(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.producer = dict(bindings_of(self.function))

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, CAST) or str(value.attrs.dtype) != "float32":
            return None
        moves: list[relax.Call] = []
        source = value.args[0]
        while source in self.producer:
            made = self.producer[source]
            if isinstance(made, relax.Call):
                if not qop.is_call(made, *MOVERS):
                    return None
                moves.append(made)
                source = made.args[0]
            else:
                source = made
        if not moves or source not in list(self.function.params):
            return None
        result = self._emitted(relax.op.astype(source, "float32"), value)
        for move in reversed(moves):
            args = [result, *move.args[1:]]
            result = self._emitted(relax.Call(move.op, args, move.attrs, move.ty_args), move)
        return result

    def _emitted(self, call: relax.Call, origin: relax.Call) -> relax.Var:
        return self.emit(relax.Call(call.op, call.args, call.attrs, call.ty_args, origin.span))


@tvm.ir.transform.module_pass(opt_level=0, name="CastInputsFirst")
class CastInputsFirst:
    """Cast inputs before they are moved (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the rewritten module."""
        return _Caster(module).rewrite()
