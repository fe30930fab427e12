"""Quantize and dequantize, with the transposes that `ConvertLayout` left beside them."""

from __future__ import annotations

from typing import Any

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, static_shape
from tvmquant.passes.convert_layout import TO_NCHW, TO_NHWC
from tvmquant.passes.lowering.emitter import Handler, Lowerer
from tvmquant.passes.lowering.movement import axes_of
from tvmquant.schedules import border


def _quantize(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    return _quantize_border(lowerer, call, call, to_nhwc=False)


def _quantize_border(
    lowerer: Lowerer, call: relax.Call, result: relax.Call, *, to_nhwc: bool
) -> relax.Expr:
    attrs = qop.attributes(call)
    x = lowerer.lookup(call.args[0])
    spec = border.QuantizeSpec(
        static_shape(x), attrs["scale"], attrs["zero_point"], attrs["qmin"], attrs["qmax"],
        attrs["out_dtype"], to_nhwc=to_nhwc,
    )  # fmt: skip
    kernel = border.kernel(spec, lowerer.machine)
    return lowerer.call(kernel, [x], result.ty, call)


def quantize_and_move(lowerer: Lowerer, permute: relax.Call) -> relax.Expr | None:
    """Fuse a transpose to NHWC into the quantize before it, which is dead then; else None."""
    source = permute.args[0]
    producer = lowerer.producer.get(source) if isinstance(source, relax.Var) else None
    alone = qop.is_call(producer, qop.QUANTIZE) and lowerer.uses[source] == 1
    if not alone or axes_of(permute) != TO_NHWC:
        return None
    return _quantize_border(lowerer, producer, permute, to_nhwc=True)


def _dequantize(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    attrs = qop.attributes(call)
    source, scale = call.args[0], call.args[1]
    producer = lowerer.producer.get(source) if isinstance(source, relax.Var) else None
    to_nchw = False
    if qop.is_call(producer, "relax.permute_dims") and axes_of(producer) == TO_NCHW:
        source, to_nchw = producer.args[0], True
    q = lowerer.lookup(source)
    scales = _full_rank(qop.constant_array(scale), attrs["axis"], len(static_shape(call)))
    spec = border.DequantizeSpec(
        static_shape(q), dtype_of(q), attrs["zero_point"], scales.shape, to_nchw
    )
    kernel = border.kernel(spec, lowerer.machine)
    return lowerer.call(kernel, [q, qop.constant(scales)], call.ty, call)


def _full_rank(values: Any, axis: int, rank: int) -> Any:
    """Shape one number per channel so that it broadcasts; a single number becomes a vector."""
    if values.size == 1:
        return values.reshape(1)
    if values.ndim != 1:
        return values
    return values.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


HANDLERS: dict[str, Handler] = {qop.QUANTIZE: _quantize, qop.DEQUANTIZE: _dequantize}
