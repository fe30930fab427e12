"""Give the fake_quants of a graph the formats that were chosen (still L1).

Before::

    x_q = fake_quant(x) {format: "uint8"}; w_q = fake_quant(w) {format: "int8"}
    lv = conv2d(x_q, w_q)

After, for a layer with 4-bit weights in groups of 32 and 6-bit activations::

    x_q = fake_quant(x) {format: "uint6"}; w_q = fake_quant(w) {format: "int4g32"}
    lv = conv2d(x_q, w_q)

Requires an annotated graph that is not calibrated yet; a fake_quant whose scale came with the model
cannot change its format. The members of a group (they meet in a concat) take one format.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax

from tvmquant.errors import QuantizationError
from tvmquant.formats import Format
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, span_name


class _Assigner(DataflowRewriter):
    def __init__(
        self,
        module: tvm.IRModule,
        weights: Mapping[str, Format],
        activations: Mapping[str, Format],
    ) -> None:
        super().__init__(module)
        self.weights = weights
        self.activations = activations
        self.groups = {
            attrs["group"]: activations[attrs["id"]]
            for _, value in bindings_of(self.function)
            if qop.is_call(value, qop.FAKE_QUANT)
            and (attrs := qop.attributes(value))["group"]
            and attrs["id"] in activations
        }

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value)
        if attrs["role"] == qop.WEIGHT:
            wanted = self.weights.get(span_name(value))
        else:
            wanted = self.activations.get(attrs["id"], self.groups.get(attrs["group"]))
        if wanted is None or wanted.name == attrs["format"]:
            return None
        if attrs["calibrated"]:
            raise QuantizationError(
                f"tensor {attrs['id']!r} has a scale for {attrs['format']} from the model and "
                f"cannot become {wanted}; leave its layer at the model's width"
            )
        args = [self.lookup(value.args[0]), *value.args[1:]]
        return qop.emit(qop.FAKE_QUANT, args, attrs | {"format": wanted.name}, value.span)


@tvm.ir.transform.module_pass(opt_level=0, name="AssignBitWidths")
class AssignBitWidths:
    """Set formats (see the module's description).

    Parameters
    ----------
    weights : mapping of str to Format
        Of each layer's weight, by the layer's name; others stay.
    activations : mapping of str to Format
        By the id of their fake_quant; others stay, but for members of their groups.

    Raises
    ------
    QuantizationError
        If the scale of a fake_quant that is to change came with the model.
    """

    def __init__(self, weights: Mapping[str, Format], activations: Mapping[str, Format]) -> None:
        self.weights = weights
        self.activations = activations

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with the formats set."""
        return _Assigner(module, self.weights, self.activations).rewrite()
