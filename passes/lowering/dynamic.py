"""What rounds tensors by their range, and makes real numbers of sums."""

from __future__ import annotations

from typing import Any

from tvm import relax

from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, static_shape
from tvmquant.passes.convert_layout import TO_NHWC
from tvmquant.passes.lowering.emitter import Handler, Lowerer
from tvmquant.passes.lowering.movement import axes_of
from tvmquant.schedules import dynamic_border
from tvmquant.schedules.dynamic_range import RangeSpec
from tvmquant.schedules.dynamic_range import kernel as range_kernel


def _range(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    x = lowerer.lookup(call.args[0])
    kernel = range_kernel(RangeSpec(static_shape(x)), lowerer.machine)
    return lowerer.call(kernel, [x], call.ty, call)


def _quantize(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    return _quantize_border(lowerer, call, call, to_nhwc=False)


def quantize_and_move(lowerer: Lowerer, permute: relax.Call) -> relax.Expr | None:
    """Fuse a transpose to NHWC into what rounds before it, which is dead then; else None."""
    source = permute.args[0]
    producer = lowerer.producer.get(source) if isinstance(source, relax.Var) else None
    alone = qop.is_call(producer, dyn.DYNAMIC_QUANTIZE) and lowerer.uses[source] == 1
    if not alone or axes_of(permute) != TO_NHWC:
        return None
    return _quantize_border(lowerer, producer, permute, to_nhwc=True)


def _quantize_border(
    lowerer: Lowerer, call: relax.Call, result: relax.Call, *, to_nhwc: bool
) -> relax.Expr:
    attrs = qop.attributes(call)
    x, found = (lowerer.lookup(arg) for arg in call.args)
    out = relax.TensorType(static_shape(result), "uint8")
    if attrs["layout"] == "NCHW" and not to_nhwc:  # each channel is an image by itself
        n, c, height, width = static_shape(x)
        x = lowerer.reshaped(x, (n * c, height, width, 1))
        out = relax.TensorType((n * c, *static_shape(result)[2:], 1), "uint8")
    padding = tuple(attrs["padding"])
    spec = dynamic_border.QuantizeSpec(static_shape(x), padding, to_nhwc)
    kernel = dynamic_border.quantize_kernel(spec, lowerer.machine)
    q = lowerer.call(kernel, [x, found], out, call)
    return lowerer.reshaped(q, static_shape(result))


def _dequantize(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    attrs = qop.attributes(call)
    sums, found, *parameters = (lowerer.lookup(arg) for arg in call.args)
    rank = len(static_shape(call))
    parameters = [_along(p, attrs["axis"], rank) for p in parameters]
    spec = dynamic_border.DequantizeSpec(
        static_shape(sums), dtype_of(sums), tuple(map(static_shape, parameters)),
        attrs["low"], attrs["high"],
    )  # fmt: skip
    kernel = dynamic_border.dequantize_kernel(spec, lowerer.machine)
    return lowerer.call(kernel, [sums, found, *parameters], call.ty, call)


def _along(parameter: relax.Expr, axis: int, rank: int) -> relax.Expr:
    """Shape a constant of one number per channel so that it broadcasts."""
    array: Any = qop.constant_array(parameter)
    if array is None or array.ndim != 1 or array.size == 1 or axis % rank == rank - 1:
        return parameter
    return qop.constant(array.reshape([-1 if i == axis % rank else 1 for i in range(rank)]))


HANDLERS: dict[str, Handler] = {
    dyn.DYNAMIC_RANGE: _range,
    dyn.DYNAMIC_QUANTIZE: _quantize,
    dyn.DYNAMIC_DEQUANTIZE: _dequantize,
}
