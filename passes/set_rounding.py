"""Give weights integers that were found otherwise than by rounding to the nearest (still L1).

Before::

    w_q = fake_quant(w, scale) {id: "conv:weight"}; x_q = fake_quant(x, s) {id: "x"}

After::

    w_q = fake_quant(integers * scale, scale) {id: "conv:weight"}; x_q = fake_quant(x, s') {id: "x"}

Requires that scales are chosen (`FixScales`); those of weights stay. The new weights are whole
numbers of their steps, which `fake_quant` leaves as they are. Activations may get other steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import Array
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter


class _Setter(DataflowRewriter):
    def __init__(
        self, module: tvm.IRModule, integers: Mapping[str, Array], steps: Mapping[str, float]
    ) -> None:
        super().__init__(module)
        self.integers, self.steps = integers, steps
        self.left = {*integers, *steps}

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value)
        name = attrs["id"]
        if name not in self.left:
            return None
        self.left.remove(name)
        args = [self.lookup(arg) for arg in value.args]
        if name in self.integers:
            args[0] = qop.constant(_weight(value, attrs, self.integers[name]))
        else:
            args[1] = qop.constant(np.full_like(qop.constant_array(args[1]), self.steps[name]))
        return qop.emit(qop.FAKE_QUANT, args, attrs, value.span)


def _weight(call: relax.Call, attrs: Mapping[str, Any], integers: Array) -> Array:
    """Return ``integers * scale`` in float32, as the twin multiplies it."""
    held = qop.constant_array(call.args[0])
    if held is None or held.shape != integers.shape:
        raise QuantizationError(
            f"the rounded weight {attrs['id']!r} has shape {integers.shape}, and the model's "
            f"{None if held is None else held.shape}; it is of another model"
        )
    scale = qop.constant_array(call.args[1])
    if scale.size > 1 and scale.shape != held.shape:
        extents = [1] * held.ndim
        extents[attrs["axis"]] = -1
        scale = scale.reshape(extents)
    if len(call.args) > 3:
        scale = scale * qop.constant_array(call.args[3])
    found: Array = (integers.astype(np.float32) * scale).astype(np.float32)
    return found


@tvm.ir.transform.module_pass(opt_level=0, name="SetRounding")
class SetRounding:
    """Replace weights and steps of activations, by the ids of their fake_quants.

    Parameters
    ----------
    integers : mapping of str to int8 array
        Of the weights' shapes.
    steps : mapping of str to float
        Of activations, > 0.

    Raises
    ------
    QuantizationError
        When there is no such fake_quant, or a shape is another.
    """

    def __init__(self, integers: Mapping[str, Array], steps: Mapping[str, float]) -> None:
        self.integers, self.steps = integers, steps

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Replace them."""
        setter = _Setter(module, self.integers, self.steps)
        rewritten = setter.rewrite()
        if setter.left:
            raise QuantizationError(
                f"the model rounds nothing called {min(setter.left)!r}; the rounding is of another"
            )
        return rewritten
