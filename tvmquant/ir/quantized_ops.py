"""The Relax operators of the annotated (L1) and the integer (L2) graph.

All are registered under ``relax.tvmquant.*`` and keep their parameters in a ``DictAttrs``, which
every TVM pass preserves. Activations are ``uint8`` containers whatever their sign: a signed
symmetric tensor is stored with zero point 128, so that one kernel per operator suffices and padding
is always "pad with the zero point". Four-dimensional operators carry ``layout`` (``"NCHW"`` with
OIHW weights as produced by integerization, ``"NHWC"`` with OHWI weights after `ConvertLayout`).

Level L1 (float):

=============== =====================================================================
fake_quant      ``(x, scale, zero_point[, multiplier])``: (dequantize o quantize)(x); activations
                and weights (``axis`` >= 0: per channel). ``format`` names what the integers
                are (`tvmquant.formats`). The scale of a weight in groups is times
                ``multiplier``, int8 of the weight's shape, at each value. ``fixed``: scale and
                zero point came with the model; ``ties`` of such: ``"even"`` or ``"up"``.
                Of the format ``ubinary``, numbers below 0 give the lower level, with ``strict``
                0 too, others the upper one
=============== =====================================================================

Level L2 (integers; equations in `tvmquant.arithmetic`):

================ ====================================================================
quantize         ``(x)``: float32 -> uint8, equation (1)
dequantize       ``(q, scale)``: integers -> float32, equation (2); the scale has shape (1,), (C,)
                 along ``axis``, or full rank
qconv2d          ``(x, w, bias[, multiplier], *epilogue)``: bias + sum(x * w * multiplier),
                 padding with the input zero point; int32 unless an epilogue is fused
qconv2d_transpose the same, transposed; every position between and around the input's elements
                 holds the input zero point
qdense           ``(x, w, bias[, multiplier], *epilogue)``: x (N, K) with w (O, K)
qmultiply        ``(a, b)``: (a - za) * (b - zb), int32, broadcasting
pool_sum         ``(x)``: sum of (x - zero_point) over windows (padding adds nothing), int32
requantize       ``(acc, multiplier, shift, offset[, acc2, multiplier2])``: equation (3); with
                 ``slopes`` ``(acc, multiplier, shift, offset, negative_multiplier)``, the last
                 for terms below 0
table            ``(q, values)``: values[q], 256 entries
================ ====================================================================

A fused epilogue is equation (3) applied to the int32 accumulator followed by an optional table:
``*epilogue`` is ``multiplier, shift, offset[, residual, residual_multiplier |
, negative_multiplier][, values]`` and the attributes ``epilogue``, ``residual``, ``slopes``,
``values`` (0 or 1) say what is present.

Contractions carry ``choice``, the name of the formats of weight and input
(`tvmquant.bit_choice.BitChoice`), and ``grouped``, 1 where the weight is in groups: ``multiplier``,
int8 of its shape, is what the integers of each group are times; ``bounded``, 1 where neighbouring
weights are rounded so that they fit 16 bits (`tvmquant.weight_pairs`); ``dynamic``, 1 where the
scale of the input is found at run time (`dynamic_ops`).

Multipliers, shifts and offsets are int arrays of shape (1,), of shape (C,) along ``axis``, or of
the full rank (broadcast as they are). Attributes of (3): ``acc_zero_point`` (of the first term, 0
for accumulators), ``residual_zero_point``, ``output_zero_point``, ``qmin``, ``qmax``, ``axis``,
``compute_dtype`` (``"int32"`` where range analysis proved it suffices, else ``"int64"``),
``ties_to_even`` (1: equation (3e)). Others:
``scale``, ``zero_point``, ``qmin``, ``qmax`` (quantize), ``zero_point``, ``axis`` (dequantize),
``a_zero_point``, ``b_zero_point`` (qmultiply). Windowed
operators carry ``strides``, ``padding`` (top, left, bottom, right), ``dilation``, ``layout``,
``input_zero_point``, and ``groups`` or ``pool_size`` or ``output_padding``. Every call carries
``out_dtype`` and ``id``, the name of the ONNX node it came from.

Plain Relax operators that only move integers stay: reshape, permute_dims, concat, strided_slice,
nn.pad, nn.max_pool2d, max (global max pooling), image.resize2d (nearest, and linear:
half up, once, with weights in fixed point, `tvmquant.resize.linear`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Op
from tvm.ir import _ffi_api as _ir_ffi
from tvm.ir.op import register_op_attr

PREFIX = "relax.tvmquant."

FAKE_QUANT = PREFIX + "fake_quant"
QUANTIZE = PREFIX + "quantize"
DEQUANTIZE = PREFIX + "dequantize"
QCONV2D = PREFIX + "qconv2d"
QCONV2D_TRANSPOSE = PREFIX + "qconv2d_transpose"
QDENSE = PREFIX + "qdense"
QMULTIPLY = PREFIX + "qmultiply"
POOL_SUM = PREFIX + "pool_sum"
REQUANTIZE = PREFIX + "requantize"
TABLE = PREFIX + "table"

# float operators that multiply by a weight, and what computes them with integers
FLOAT_CONTRACTIONS = {
    "relax.nn.conv2d": QCONV2D,
    "relax.nn.conv2d_transpose": QCONV2D_TRANSPOSE,
    "relax.matmul": QDENSE,
}
CONTRACTIONS = tuple(FLOAT_CONTRACTIONS.values())
# what a fake_quant quantizes: what layers read, what the user or a float operator reads
ACTIVATION, OUTPUT, WEIGHT = "activation", "output", "weight"

# operators whose int32 accumulator can be finished by a fused epilogue
ACCUMULATING = (*CONTRACTIONS, QMULTIPLY, POOL_SUM)


def emit(
    name: str, args: Sequence[relax.Expr], attrs: dict[str, Any], span: Any = None
) -> relax.Call:
    """Build a call of one of the operators above (not yet bound to a variable)."""
    return relax.Call(
        Op.get(name), list(args), tvm.ir.make_node("ir.DictAttrs", **attrs), None, span
    )


def is_call(expr: Any, *names: str) -> TypeGuard[relax.Call]:
    """Whether ``expr`` is a call of one of the named operators (own or built-in)."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, Op) and expr.op.name in names


def attributes(call: relax.Call) -> dict[str, Any]:
    """Return the attributes of one of the operators above as plain Python values."""
    return {str(k): _plain(v) for k, v in call.attrs.items()}


def contraction_operands(call: relax.Call) -> tuple[list[relax.Expr], relax.Expr | None]:
    """Return the operands of a contraction without the multipliers of its groups, and these."""
    args = list(call.args)
    return args, args.pop(3) if attributes(call).get("grouped") else None


def constant(array: Any) -> tvm.ir.GenericConst:
    """Wrap a numpy array as a Relax constant of the same shape and dtype."""
    array = np.asarray(array, order="C")
    return relax.const(array, str(array.dtype))  # without a dtype, 64 bits are cut to 32


def constant_array(expr: Any) -> Any:
    """Return the numpy array of a Relax constant, or None for any other expression."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def is_float(expr: relax.Expr) -> bool:
    """Whether an expression is a tensor of floating-point numbers."""
    return isinstance(expr.ty, relax.TensorType) and _dtype(expr).startswith("float")


def _plain(value: Any) -> Any:
    if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return value.value
    if isinstance(value, tvm.ir.Array | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str):
        return str(value)
    return value


def _shape(expr: relax.Expr) -> list[Any]:
    return list(expr.ty.shape.values)


def _dtype(expr: relax.Expr) -> str:
    return str(expr.ty.dtype.dtype)


def _same_shape(dtype_attr: str | None) -> Callable[[relax.Call, Any], relax.TensorType]:
    def infer(call: relax.Call, _ctx: Any) -> relax.TensorType:
        dtype = attributes(call)[dtype_attr] if dtype_attr else "float32"
        return relax.TensorType(_shape(call.args[0]), dtype)

    return infer


def _window(extent: Any, kernel: int, stride: int, pads: tuple[int, int], dilation: int) -> Any:
    return (extent + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1


def _infer_qconv2d(call: relax.Call, _ctx: Any) -> relax.TensorType:
    a = attributes(call)
    shape, weight = _shape(call.args[0]), [int(v) for v in _shape(call.args[1])]
    nchw = a["layout"] == "NCHW"
    height, width = (shape[2], shape[3]) if nchw else (shape[1], shape[2])
    kernel = weight[2:4] if nchw else weight[1:3]
    top, left, bottom, right = a["padding"]
    out_h = _window(height, kernel[0], a["strides"][0], (top, bottom), a["dilation"][0])
    out_w = _window(width, kernel[1], a["strides"][1], (left, right), a["dilation"][1])
    out = [shape[0], weight[0], out_h, out_w] if nchw else [shape[0], out_h, out_w, weight[0]]
    return relax.TensorType(out, a["out_dtype"])


def _infer_qconv2d_transpose(call: relax.Call, _ctx: Any) -> relax.TensorType:
    a = attributes(call)
    shape, weight = _shape(call.args[0]), [int(v) for v in _shape(call.args[1])]
    nchw = a["layout"] == "NCHW"
    spatial = shape[2:4] if nchw else shape[1:3]
    kernel = weight[2:4] if nchw else weight[1:3]
    top, left, bottom, right = a["padding"]
    out = [
        (spatial[i] - 1) * a["strides"][i]
        - pads
        + a["dilation"][i] * (kernel[i] - 1)
        + a["output_padding"][i]
        + 1
        for i, pads in enumerate((top + bottom, left + right))
    ]
    channels = weight[0]
    return relax.TensorType(
        [shape[0], channels, *out] if nchw else [shape[0], *out, channels], a["out_dtype"]
    )


def _infer_qdense(call: relax.Call, _ctx: Any) -> relax.TensorType:
    shape = _shape(call.args[0])
    return relax.TensorType([*shape[:-1], _shape(call.args[1])[0]], attributes(call)["out_dtype"])


def _infer_broadcast(call: relax.Call, _ctx: Any) -> relax.TensorType:
    return relax.TensorType(
        _broadcast(_shape(call.args[0]), _shape(call.args[1])), attributes(call)["out_dtype"]
    )


def _broadcast(left: list[Any], right: list[Any]) -> list[Any]:
    rank = max(len(left), len(right))
    left = [1] * (rank - len(left)) + left
    right = [1] * (rank - len(right)) + right
    return [b if isinstance(a, int | tvm.tirx.IntImm) and int(a) == 1 else a
            for a, b in zip(left, right, strict=True)]  # fmt: skip


def _infer_requantize(call: relax.Call, _ctx: Any) -> relax.TensorType:
    shape = _shape(call.args[0])
    if len(call.args) > 5:
        shape = _broadcast(shape, _shape(call.args[4]))
    return relax.TensorType(shape, attributes(call)["out_dtype"])


def _infer_pool_sum(call: relax.Call, _ctx: Any) -> relax.TensorType:
    a = attributes(call)
    shape = _shape(call.args[0])
    first = 2 if a["layout"] == "NCHW" else 1
    top, left, bottom, right = a["padding"]
    for i, pads in enumerate(((top, bottom), (left, right))):
        shape[first + i] = _window(
            shape[first + i], a["pool_size"][i], a["strides"][i], pads, a["dilation"][i]
        )
    return relax.TensorType(shape, a["out_dtype"])


def _infer_table(call: relax.Call, _ctx: Any) -> relax.TensorType:
    return relax.TensorType(_shape(call.args[0]), _dtype(call.args[1]))


_EPILOGUE = ("multiplier", "shift", "offset")


def register(name: str, arguments: Sequence[str], infer: Callable[..., Any]) -> None:
    """Register an operator of Relax, with what infers the type of a call; repeating is allowed."""
    try:
        Op.get(name)
        return  # this module was imported twice in one process
    except AttributeError:
        _ir_ffi.RegisterOp(name, f"tvmquant operator {name.removeprefix(PREFIX)}")
    op = Op.get(name)
    for argument in arguments:
        _ir_ffi.OpAddArgument(op, argument, "Tensor", "")
    # -1: any number of arguments, since an epilogue or a multiplier adds some
    variadic = arguments[-1] in ("epilogue", "multiplier")
    _ir_ffi.OpSetNumInputs(op, -1 if variadic else len(arguments))
    register_op_attr(name, "FPurity", True)
    register_op_attr(name, "FInferType", infer)


register(FAKE_QUANT, ("x", "scale", "zero_point", "multiplier"), _same_shape(None))
register(QUANTIZE, ("x",), _same_shape("out_dtype"))
register(DEQUANTIZE, ("q", "scale"), _same_shape(None))
register(QCONV2D, ("x", "weight", "bias", "epilogue"), _infer_qconv2d)
register(QCONV2D_TRANSPOSE, ("x", "weight", "bias", "epilogue"), _infer_qconv2d_transpose)
register(QDENSE, ("x", "weight", "bias", "epilogue"), _infer_qdense)
register(QMULTIPLY, ("a", "b", "epilogue"), _infer_broadcast)
register(POOL_SUM, ("x", "epilogue"), _infer_pool_sum)
register(REQUANTIZE, ("acc", "epilogue"), _infer_requantize)
register(TABLE, ("q", "values"), _infer_table)
