"""The Relax operators of tensors whose range is found at run time (`tvmquant.arithmetic`).

Level L1 (float):

=============== =====================================================================
dynamic_quant   ``(x)``: float32 rounded to 256 steps of its own range. ``fixed``: 1 where the
                model asks for it, else the choice of whoever quantized it
=============== =====================================================================

Level L2:

================== ==================================================================
dynamic_range      ``(x)``: float32 -> float32 (2,), scale and zero point, equation (4)
dynamic_quantize   ``(x, range)``: float32 -> uint8, equation (1), in a frame of zero points:
                   ``padding`` (top, left, bottom, right) of the spatial axes of ``layout``
dynamic_dequantize ``(sums, range, weight_sums, scale, bias[, window_sums, weight_zero_point])``:
                   integers -> float32, equation (5), clipped to [``low``, ``high``]. The sums are
                   taken ``zero_point * weight_sums + weight_zero_point * window_sums`` less
================== ==================================================================

Layers between the last two have input zero point 0 and no padding: what they read holds it already.
``weight_sums`` (of the weight's integers less their zero points), ``scale``, ``bias`` and
``weight_zero_point`` have shape (1,), (C,) along ``axis``, or the full rank; ``window_sums`` has
that of the sums, with one channel where all multiply the same. Every call carries ``id``.
"""

from __future__ import annotations

from typing import Any

from tvm import relax

from tvmquant.ir import quantized_ops as qop

DYNAMIC_QUANT = qop.PREFIX + "dynamic_quant"
DYNAMIC_RANGE = qop.PREFIX + "dynamic_range"
DYNAMIC_QUANTIZE = qop.PREFIX + "dynamic_quantize"
DYNAMIC_DEQUANTIZE = qop.PREFIX + "dynamic_dequantize"

# level L2
INTEGER = (DYNAMIC_RANGE, DYNAMIC_QUANTIZE, DYNAMIC_DEQUANTIZE)


def _infer_same(call: relax.Call, _ctx: Any) -> relax.TensorType:
    return relax.TensorType(call.args[0].ty.shape, "float32")


def _infer_range(_call: relax.Call, _ctx: Any) -> relax.TensorType:
    return relax.TensorType([2], "float32")


def _infer_quantize(call: relax.Call, _ctx: Any) -> relax.TensorType:
    a = qop.attributes(call)
    shape = list(call.args[0].ty.shape.values)
    if any(a["padding"]):
        top, left, bottom, right = a["padding"]
        first = 2 if a["layout"] == "NCHW" else 1
        shape[first] = shape[first] + top + bottom
        shape[first + 1] = shape[first + 1] + left + right
    return relax.TensorType(shape, "uint8")


qop.register(DYNAMIC_QUANT, ("x",), _infer_same)
qop.register(DYNAMIC_RANGE, ("x",), _infer_range)
qop.register(DYNAMIC_QUANTIZE, ("x", "range"), _infer_quantize)
qop.register(DYNAMIC_DEQUANTIZE, ("sums", "range", "weight_sums", "scale", "epilogue"), _infer_same)
