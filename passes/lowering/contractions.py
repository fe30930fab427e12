"""Convolutions, transposed convolutions and dense layers: the registered families compute them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import Array
from tvmquant.bit_choice import BitChoice
from tvmquant.formats import INT8
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.ir.tensor_types import static_shape
from tvmquant.passes.lowering.bits import packed
from tvmquant.passes.lowering.emitter import Handler, Lowerer
from tvmquant.passes.lowering.epilogues import epilogue_of
from tvmquant.schedules import structural
from tvmquant.schedules.families import (
    CONV2D,
    CONV2D_TRANSPOSE,
    DENSE,
    Contraction,
    Layer,
    Operand,
    Weight,
    family_of,
)

_OPERATORS = {
    qop.QCONV2D: CONV2D,
    qop.QCONV2D_TRANSPOSE: CONV2D_TRANSPOSE,
    qop.QDENSE: DENSE,
}


def contraction_of(call: relax.Call, batch: int = 1) -> Contraction:
    """Return what an integer operator (L2, channels last) contracts.

    Parameters
    ----------
    call : Call
    batch : int
        What symbolic extents are.
    """
    attrs = qop.attributes(call)
    extents = call.args[0].ty.shape.values
    shape = [int(v) if isinstance(v, tvm.tirx.IntImm) else batch for v in extents]
    outputs, *window, _ = static_shape(call.args[1])
    if qop.is_call(call, qop.QDENSE):
        return Contraction(DENSE, math.prod(shape[:-1]), 1, 1, shape[-1], outputs)
    count, height, width, channels = shape
    return Contraction(
        _OPERATORS[call.op.name], count, height, width, channels, outputs, (window[0], window[1]),
        tuple(attrs["strides"]), tuple(attrs["padding"]), tuple(attrs["dilation"]),
        tuple(attrs.get("output_padding", (0, 0))), attrs["groups"],
        residual=bool(attrs.get("residual", 0)),
    )  # fmt: skip


def _contract(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    attrs = qop.attributes(call)
    operands, multiplier = qop.contraction_operands(call)
    x, weight, bias, *extra = (lowerer.lookup(a) for a in operands)
    contraction, choice = contraction_of(call), BitChoice.parse(attrs["choice"])
    epilogue = epilogue_of(attrs, extra)
    layer = Layer(
        contraction,
        span_name(call),
        _windows(weight),
        np.broadcast_to(qop.constant_array(bias), (contraction.outputs,)),
        choice.weight, choice.activation, None if multiplier is None else _windows(multiplier),
        attrs["input_zero_point"], attrs["input_qmin"], attrs["input_qmax"],
    )  # fmt: skip
    if epilogue is not None:
        layer = layer.finished(
            epilogue.static,
            epilogue.per_channel(contraction.outputs),
            epilogue.residual_dtype,
        )
    family = family_of(contraction, choice, lowerer.machine, layer.name)
    found = family.lower(layer, lowerer.machine, lowerer.tilings)
    tensors = {"input": x, "residual": epilogue and epilogue.residual}

    def operand(value: Operand) -> relax.Expr:
        if value.bits is not None:
            tensor = packed(lowerer, operands[0], value.bits, value.planes, call)
        else:
            tensor = tensors[value.name]
        return tensor if value.shape is None else lowerer.reshaped(tensor, value.shape)

    def argument(value: Any) -> relax.Expr:
        if isinstance(value, Weight):
            held = choice.weight if value.bits == choice.weight.bits else INT8
            return lowerer.weight(value.packed, value.held or held, value.layout, value.channels)
        return operand(value) if isinstance(value, Operand) else qop.constant(value)

    out = relax.TensorType(found.shape, attrs["out_dtype"])
    result = lowerer.call(found.kernel, [argument(a) for a in found.arguments], out, call)
    if found.axes:
        spec = structural.PermuteSpec(found.view, found.axes, attrs["out_dtype"])
        result = lowerer.moved(spec, [lowerer.reshaped(result, found.view)], call)
    return lowerer.reshaped(result, static_shape(call))


def _windows(weight: relax.Expr) -> Array:
    """Return a weight as (O, kh, kw, C): of a dense layer, of one pixel."""
    array: Array = qop.constant_array(weight)
    return array[:, None, None, :] if array.ndim == 2 else array


HANDLERS: dict[str, Handler] = dict.fromkeys(_OPERATORS, _contract)
