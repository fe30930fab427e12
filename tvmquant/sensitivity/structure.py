"""What the loss depends upon and a float graph tells: how outputs end, and whether it is smooth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.passes.region_operators import RESHAPES

if TYPE_CHECKING:
    import tvm

SOFTMAX: Final = "relax.nn.softmax"
SIGMOID: Final = "relax.sigmoid"

# Piecewise linear in all their tensors at once.
_LINEAR: Final = frozenset(
    {
        "relax.add", "relax.subtract", "relax.negative", "relax.abs", "relax.maximum",
        "relax.minimum", "relax.clip", "relax.nn.relu", "relax.nn.leakyrelu",
        "relax.nn.batch_norm", "relax.nn.max_pool2d", "relax.nn.avg_pool2d",
        "relax.nn.adaptive_avg_pool2d", "relax.nn.pad", "relax.image.resize2d", "relax.mean",
        "relax.sum", "relax.max", "relax.min", "relax.concat", "relax.split",
        "relax.strided_slice", "relax.nn.batch_flatten", "relax.broadcast_to", "relax.tile",
        qop.FAKE_QUANT, *RESHAPES,
    }
)  # fmt: skip
# Linear where all operands but the first are constants; a product, where one of them is.
_LINEAR_IN_FIRST: Final = frozenset(
    {"relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.nn.prelu", "relax.divide"}
)
_PRODUCTS: Final = frozenset({"relax.multiply", "relax.matmul"})


def ends_of(module: tvm.IRModule) -> list[str]:
    """Return the operator that computes each output, reshapes apart; empty for an input.

    A softmax along another axis than 1 is none that the loss could use, and empty too.
    """
    return [_name_of_end(call) for call in _end_calls(module)]


def is_piecewise_linear(module: tvm.IRModule) -> bool:
    """Whether what goes into the final softmax, or the output, is piecewise linear in every tensor.

    Sufficient, not necessary: operators that are not known to be so count as smooth.
    """
    ends = [
        call for call in _end_calls(module) if qop.is_call(call, SOFTMAX, "relax.nn.log_softmax")
    ]
    return all(
        _is_linear(value) or any(value.same_as(end) for end in ends)
        for _, value in bindings_of(module["main"])
        if isinstance(value, relax.Call)
    )


def _is_linear(call: relax.Call) -> bool:
    constant = [not isinstance(argument, relax.Var) for argument in call.args]
    if qop.is_call(call, *_LINEAR):
        return True
    if qop.is_call(call, *_LINEAR_IN_FIRST):
        return all(constant[1:])
    return qop.is_call(call, *_PRODUCTS) and any(constant)


def _end_calls(module: tvm.IRModule) -> list[Any]:
    function = module["main"]
    values: dict[Any, Any] = dict(bindings_of(function))

    def value_of(expr: Any) -> Any:
        while expr in values:
            expr = values[expr]
        return expr

    def end(expr: Any) -> Any:
        call = value_of(expr)
        while qop.is_call(call, qop.FAKE_QUANT, *RESHAPES):
            call = value_of(call.args[0])
        return call

    result = value_of(function.body.body)
    return [
        end(field) for field in (result.fields if isinstance(result, relax.Tuple) else [result])
    ]


def _name_of_end(call: Any) -> str:
    if not isinstance(call, relax.Call):
        return ""
    if qop.is_call(call, SOFTMAX):
        rank = len(call.ty.shape.values)
        return SOFTMAX if int(call.attrs.axis) % rank == 1 else ""
    return str(getattr(call.op, "name", ""))
