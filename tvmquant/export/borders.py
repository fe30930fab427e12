"""Integers that a quantized model was given, or gives, as they are."""

from __future__ import annotations

import numpy as np

from tvmquant.errors import UnsupportedModelError
from tvmquant.export import opsets
from tvmquant.export.call_writer import CallWriter, Writer
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of


def _quantize(writer: CallWriter) -> str:
    a = qop.attributes(writer.call)
    limits = np.iinfo(a["out_dtype"])
    whole = (a["qmin"], a["qmax"]) == (limits.min, limits.max)
    if not whole or not opsets.holds(a["out_dtype"], writer.opset):
        raise UnsupportedModelError(
            f"node {writer.name!r}: it gives integers of type {a['out_dtype']} from {a['qmin']} to "
            f"{a['qmax']}, which QuantizeLinear of opset {writer.opset} does not"
        )
    scale = writer.constant(np.float32(a["scale"]), "scale")
    zero = writer.constant(np.asarray(a["zero_point"], a["out_dtype"]), "zero_point")
    return writer.node("QuantizeLinear", [writer.tensor(0), scale, zero])


def _dequantize(writer: CallWriter) -> str:
    a, scale = qop.attributes(writer.call), writer.array(1)
    axis = a["axis"] if scale.size > 1 else None
    scale = scale.reshape(() if axis is None else -1)
    zero = np.full(scale.shape, a["zero_point"], dtype_of(writer.call.args[0]))
    constants = writer.constant(scale, "scale"), writer.constant(zero, "zero_point")
    return writer.node("DequantizeLinear", [writer.tensor(0), *constants], axis=axis)


BORDERS: dict[str, Writer] = {qop.QUANTIZE: _quantize, qop.DEQUANTIZE: _dequantize}
