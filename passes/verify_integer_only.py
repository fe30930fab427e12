"""Check that nothing between the borders computes in float, and list what does (L2).

A graph is integer-only when no operator but quantize and dequantize reads or writes a float tensor,
which leaves those two only where the graph begins and ends; a table of floats is a dequantization.
An operator of integer result counts too, such as an argmax of floats. What stayed float is reported
with the ONNX node it came from and the reason; in strict mode it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm import relax

from tvmquant.errors import QuantizationError
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name, used_vars
from tvmquant.ir.tensor_types import dtype_of
from tvmquant.passes.elementwise import ELEMENTWISE, LOGICAL, SELECT
from tvmquant.passes.recurrent import RECURRENT
from tvmquant.passes.region_operators import is_mover

SUM_REASON = "squares, and what a root, a logarithm or a quotient reads, need more than 8 bits"
REASONS = {
    "relax.nn.softmax": "softmax has no integer form yet",
    "relax.nn.log_softmax": "softmax has no integer form yet",
    RECURRENT: "every step of a recurrence reads the one before; its projection is integers",
    "relax.nn.layer_norm": "normalization over activations has no integer form yet",
    "relax.nn.group_norm": "normalization over activations has no integer form yet",
    "relax.image.resize2d": "only nearest-neighbour and linear resizing have an integer form",
    "relax.mean": SUM_REASON,
    "relax.sum": SUM_REASON,
    SELECT: "a choice between two tensors has no integer form",
    **dict.fromkeys(LOGICAL, "a comparison of two tensors has no integer form"),
    "relax.divide": "division by an activation has no integer form",
}
# A table of floats is a dequantization of a function; a range is found for a quantization.
BORDERS = (qop.QUANTIZE, qop.DEQUANTIZE, qop.TABLE, *dyn.INTEGER)
MATMUL, PERMUTE = "relax.matmul", "relax.permute_dims"
UNSCALED_REASON = "the model brings no scale for its input or weight, or several for one channel"
UNSCALED_SUMS_REASON = "what it reads has no scale in the model; calibrate it with data"
PRODUCT_REASON = "a product of two activations: one would have to be packed for every input"
CONSTANT_REASON = "its constant differs along the batch, or gives the result further axes"
FUNCTION_REASON = "it is a function of what a float operator gives, or is read by one"
DEFAULT_REASON = "the operator has no integer form"


@dataclass(frozen=True)
class FloatOp:
    """An operator that computes in float, the ONNX node it came from, and why."""

    op: str
    node: str
    reason: str

    def __str__(self) -> str:
        """Return one line for a report."""
        return f"{self.op} ({self.node}): {self.reason}"


def float_audit(module: tvm.IRModule) -> list[FloatOp]:
    """List the operators of an L2 module that read or write floats, in graph order.

    Quantize and dequantize, and what they change the layout by, are not listed.
    """
    found = []
    made = dict(bindings_of(module["main"]))
    for value in made.values():
        if not isinstance(value, relax.Call) or qop.is_call(value, *BORDERS):
            continue
        if qop.is_call(value, PERMUTE) and not span_name(value):
            continue  # not of the model: a change of layout at a border
        if _is_float(value.ty) or any(_is_float(operand.ty) for operand in value.args):
            name = str(value.op.name)
            found.append(
                FloatOp(
                    name.removeprefix("relax.").removeprefix("nn."),
                    span_name(value) or "unnamed",
                    UNSCALED_SUMS_REASON if _reads_sums(value, made) else _reason(value),
                )
            )
    return found


def _reads_sums(call: relax.Call, made: Mapping[relax.Var, relax.Expr]) -> bool:
    """Whether an operator reads the sums of a layer whose result has no scale."""
    read = [made.get(operand) for operand in used_vars(call)]
    return any(qop.is_call(v, qop.DEQUANTIZE) and dtype_of(v.args[0]) == "int32" for v in read)


def _reason(call: relax.Call) -> str:
    name = str(call.op.name)
    if _is_unscaled(call):
        return UNSCALED_REASON
    if name != MATMUL:
        other = FUNCTION_REASON if name in ELEMENTWISE or is_mover(call) else DEFAULT_REASON
        return REASONS.get(name, other)
    constant = any(isinstance(operand, tvm.ir.GenericConst) for operand in call.args)
    return CONSTANT_REASON if constant else PRODUCT_REASON


def _is_unscaled(call: relax.Call) -> bool:
    """Whether a layer lacks scales: what is calibrated makes integers of layers."""
    if not qop.is_call(call, *qop.FLOAT_CONTRACTIONS):
        return False
    weight = call.args[1]
    usual = not qop.is_call(call, MATMUL) or len(weight.ty.shape.values) == 2
    return isinstance(weight, tvm.ir.GenericConst) and usual


def _is_float(kind: tvm.ir.Type) -> bool:
    """Whether a value of this type is a float tensor, or a tuple that holds one."""
    if isinstance(kind, relax.TupleType):
        return any(_is_float(field) for field in kind.fields)
    return isinstance(kind, relax.TensorType) and str(kind.dtype).startswith("float")


@tvm.ir.transform.module_pass(opt_level=0, name="VerifyIntegerOnly")
class VerifyIntegerOnly:
    """Raise if a module computes in float; return it unchanged otherwise.

    Raises
    ------
    QuantizationError
        Naming every float operator, its node and the reason.
    """

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module unchanged."""
        found = float_audit(module)
        if found:
            listing = "\n".join(f"  - {op}" for op in found)
            raise QuantizationError(
                f"{len(found)} operators would stay float:\n{listing}\n"
                "compile without strict mode to keep them in float"
            )
        return module
