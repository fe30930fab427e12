"""Fuse bias and clip into what makes real numbers of a layer's sums (L2).

Before::

    y = dynamic_dequantize(sums, range, weight_sums, scale, [0.]); z = relu(y + bias)

After::

    z = dynamic_dequantize(sums, range, weight_sums, scale, bias) {low: 0}

The numbers stay as they are: the kernel does the same operations in the same order. Requires that
nothing else reads what it passes; constants vary along the output channels only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, count_uses
from tvmquant.passes.elementwise import scalar_bound
from tvmquant.passes.region_operators import keeps_shape, varies_along

# of the arguments
_BIAS = 4


class _Fuser(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(self.function)
        self.fused: dict[relax.Var, relax.Call] = {}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, dyn.DYNAMIC_DEQUANTIZE):
            self.fused[var] = self.copy(value)
            return self.fused[var]
        if not isinstance(value, relax.Call) or not value.args:
            return None
        source = next((arg for arg in value.args if arg in self.fused), None)
        if source is None or self.uses[source] != 1:
            return None
        new = _finished(self.fused[source], value, source)
        if new is not None:
            self.fused[var] = new
        return new


def _finished(call: relax.Call, value: relax.Call, source: relax.Expr) -> relax.Call | None:
    """Return a call that does also what reads its result; None where it cannot."""
    attrs = qop.attributes(call)
    if qop.is_call(value, "relax.add"):
        other = value.args[1] if value.args[0].same_as(source) else value.args[0]
        return _biased(call, attrs, value, other)
    if qop.is_call(value, "relax.nn.relu"):
        return _clipped(call, attrs, 0.0, math.inf)
    if qop.is_call(value, "relax.clip"):
        return _clipped(call, attrs, *(scalar_bound(bound) for bound in value.args[1:]))
    return None


def _biased(
    call: relax.Call, attrs: dict[str, Any], value: relax.Call, other: relax.Expr
) -> relax.Call | None:
    bias = qop.constant_array(other)
    rank = len(value.ty.shape.values)
    taken = qop.constant_array(call.args[_BIAS]).any()
    clips = attrs["low"] > -math.inf or attrs["high"] < math.inf
    if taken or clips or not varies_along(bias, rank, attrs["axis"] % rank):
        return None
    if bias.dtype != np.float32 or not keeps_shape(value, call.args[0]):
        return None
    args = list(call.args)
    args[_BIAS] = qop.constant(bias.reshape(-1))
    return qop.emit(dyn.DYNAMIC_DEQUANTIZE, args, attrs, call.span)


def _clipped(call: relax.Call, attrs: dict[str, Any], low: float, high: float) -> relax.Call:
    bounds = {"low": min(max(attrs["low"], low), high), "high": max(min(attrs["high"], high), low)}
    return qop.emit(dyn.DYNAMIC_DEQUANTIZE, list(call.args), attrs | bounds, call.span)


@tvm.ir.transform.module_pass(opt_level=0, name="FuseRealEpilogue")
class FuseRealEpilogue:
    """Fuse what follows a layer of an input rounded by its range (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module; superseded bindings are dead and removed."""
        return _Fuser(module).rewrite()
