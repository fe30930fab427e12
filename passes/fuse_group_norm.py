"""Write a group normalization that an exporter took apart as one operator again (L0).

Before / After, ``S`` being the shape of x and ``C`` constants per channel::

    reshape(group_norm(reshape(x, (N, G, L)), groups=G), S)  ->  group_norm(x, groups=G)
    group_norm(x) * C, group_norm(x) + C                     ->  group_norm(x), other parameters

Exporters know InstanceNormalization only: they normalize groups as if each were a channel, and
multiply and add the parameters per channel behind it. Requires canonical form (`CanonicalizeOps`).
What another operator reads as well stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses
from tvmquant.passes.channel_affine import channel_vector

GROUP_NORM = "relax.nn.group_norm"


class _Fuser(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        self.norms: dict[relax.Var, relax.Call] = {}  # by their variable, as they are by now

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, GROUP_NORM):
            self.norms[var] = self.copy(value)
            return None
        if qop.is_call(value, "relax.reshape"):
            new = self._reshape(var, value)
        elif qop.is_call(value, "relax.multiply", "relax.add"):
            new = self._affine(value)
        else:
            return None
        if new is not None:
            self.norms[var] = new
        return new

    def _norm(self, operand: relax.Expr) -> relax.Call | None:
        """Return the normalization that made an operand, if nothing else reads it."""
        return self.norms.get(operand) if self.uses[operand] == 1 else None

    def _reshape(self, var: relax.Var, call: relax.Call) -> relax.Call | None:
        norm = self._norm(call.args[0])
        if norm is None:
            return None
        before = self.builder.lookup_binding(norm.args[0])
        if not qop.is_call(before, "relax.reshape") or before.args[0].ty != var.ty:
            return None
        shape, wanted = call.args[0].ty.shape.values, var.ty.shape.values
        groups, parts = int(norm.attrs.num_groups), _static(shape[1])
        rank, channels = len(wanted), _static(wanted[1]) if len(wanted) > 2 else 0
        same_batch = str(shape[0]) == str(wanted[0])
        if not channels or not same_batch or groups != parts or channels % parts:
            return None
        gamma, beta = (np.repeat(_values(a), channels // parts) for a in norm.args[1:])
        return _group_norm(before.args[0], gamma, beta, norm, groups, rank)

    def _affine(self, call: relax.Call) -> relax.Call | None:
        constant = qop.constant_array(call.args[1])
        norm = self._norm(call.args[0]) if constant is not None else None
        if norm is None or call.ty != call.args[0].ty:
            return None
        rank = len(call.ty.shape.values)
        vector = channel_vector(constant, rank, 1)
        if vector is None:
            return None
        gamma, beta = (_values(a) for a in norm.args[1:])
        if qop.is_call(call, "relax.multiply"):
            gamma, beta = gamma * vector, beta * vector
        else:
            beta = beta + vector
        return _group_norm(norm.args[0], gamma, beta, norm, int(norm.attrs.num_groups), rank)


def _values(parameter: relax.Expr) -> Any:
    return qop.constant_array(parameter).astype(np.float64)


def _static(extent: Any) -> int:
    return int(extent) if isinstance(extent, tvm.tirx.IntImm) else 0


def _group_norm(
    x: relax.Expr, gamma: Any, beta: Any, norm: relax.Call, groups: int, rank: int
) -> relax.Call:
    """Return a normalization of ``x`` under the name of ``norm``."""
    parameters = [qop.constant(v.astype(np.float32)) for v in (gamma, beta)]
    call = relax.op.nn.group_norm(
        x, *parameters, groups, 1, list(range(2, rank)), float(norm.attrs.epsilon)
    )
    return relax.Call(call.op, call.args, call.attrs, call.ty_args, norm.span)


@tvm.ir.transform.module_pass(opt_level=0, name="FuseGroupNorm")
class FuseGroupNorm:
    """Put group normalizations together (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with whole normalizations."""
        return _Fuser(module).rewrite()
