"""What changes the type of numbers, or nothing: casts, identities, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from tvm import relax

from tvmquant.frontend.context import Context, Value
from tvmquant.frontend.dimensions import UnsupportedNodeError, is_symbolic
from tvmquant.frontend.float_types import FLOAT_KINDS, as_float32
from tvmquant.frontend.input_types import TYPES
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter


@converter("Cast")
def _convert_cast(ctx: Context, node: Node) -> relax.Expr:
    """Convert types; all floating-point types are float32 in the graph."""
    data = ctx.tensor(0)
    target = onnx.helper.tensor_dtype_to_np_dtype(node.integer("to", 1)).name
    return _cast(ctx, data, target)


def _cast(ctx: Context, data: relax.Expr, target: str) -> relax.Expr:
    dtype = "float32" if target in FLOAT_KINDS else target
    if dtype not in TYPES:
        raise UnsupportedNodeError(f"it casts to {target}, expected one of {', '.join(TYPES)}")
    return data if str(data.ty.dtype) == dtype else ctx.emit(relax.op.astype(data, dtype))


@converter("CastLike")
def _convert_cast_like(ctx: Context, node: Node) -> Value:
    like, constant = ctx.value(1), ctx.value(0)
    target = like.dtype.name if isinstance(like, np.ndarray) else str(ctx.tensor(1).ty.dtype)
    if isinstance(constant, np.ndarray) and not is_symbolic(constant) and target in TYPES:
        return as_float32(constant).astype(target)
    return _cast(ctx, ctx.tensor(0), target)


@converter("Identity", "Dropout")
def _convert_identity(ctx: Context, node: Node) -> Any:
    value = ctx.value(0)
    if node.op_type != "Dropout":
        return value
    training, ratio = ctx.optional_constant(2), ctx.optional_constant(1)
    drops = ratio is None or bool(np.any(ratio))
    if training is not None and bool(training.item()) and drops:
        raise UnsupportedNodeError("it is in training mode; export with model.eval()")
    if not any(node.outputs[1:]):
        return value
    # nothing is dropped
    data = ctx.tensor(0)
    dtype = "bool" if node.opset >= 10 else str(data.ty.dtype)
    shape, one = ctx.expression(ctx.shape(data)), ctx.embed(np.ones((), dtype))
    return value, ctx.emit(relax.op.full(shape, one, dtype))
