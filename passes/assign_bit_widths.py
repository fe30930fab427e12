"""Narrow the fake_quants of a graph to the bit widths that were chosen (still L1).

Before::

    x_q = fake_quant(x) {bits: 8}; w_q = fake_quant(w) {bits: 8}; lv = conv2d(x_q, w_q)

After, for a layer with 4-bit weights in groups of 32 and 4-bit activations::

    x_q = fake_quant(x) {bits: 4}; w_q = fake_quant(w) {bits: 4, w_group: 32}; lv = conv2d(x_q, w_q)

Requires an annotated graph that is not calibrated yet; a fake_quant whose scale came with the model
cannot change its width.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax

from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, span_name
from tvmquant.passes.region_operators import WEIGHT


class _Assigner(DataflowRewriter):
    def __init__(
        self,
        module: tvm.IRModule,
        weights: Mapping[str, tuple[int, int]],
        activations: Mapping[str, int],
    ) -> None:
        super().__init__(module)
        self.weights = weights
        self.activations = activations

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value)
        if attrs["role"] == WEIGHT:
            bits, group = self.weights.get(span_name(value), (attrs["bits"], 0))
        else:
            bits, group = self.activations.get(attrs["id"], attrs["bits"]), 0
        if (bits, group) == (attrs["bits"], attrs.get("w_group", 0)):
            return None
        if attrs["calibrated"]:
            raise QuantizationError(
                f"tensor {attrs['id']!r} has a scale for {attrs['bits']} bits from the model and "
                f"cannot have {bits}; leave its layer at the model's width"
            )
        args = [self.lookup(value.args[0]), *value.args[1:]]
        grouped = {"w_group": group} if group else {}
        return qop.emit(qop.FAKE_QUANT, args, attrs | {"bits": bits} | grouped, value.span)


@tvm.ir.transform.module_pass(opt_level=0, name="AssignBitWidths")
class AssignBitWidths:
    """Set bit widths (see the module's description).

    Parameters
    ----------
    weights : mapping of str to (int, int)
        Bits and group size of each layer's weight, by the layer's name; others stay.
    activations : mapping of str to int
        Bits of activations, by the id of their fake_quant; others stay.

    Raises
    ------
    QuantizationError
        If the scale of a fake_quant that is to change came with the model.
    """

    def __init__(
        self, weights: Mapping[str, tuple[int, int]], activations: Mapping[str, int]
    ) -> None:
        self.weights = weights
        self.activations = activations

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with the widths set."""
        return _Assigner(module, self.weights, self.activations).rewrite()
