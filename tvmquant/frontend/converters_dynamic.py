"""DynamicQuantizeLinear: ranges that are found at run time, as the model asks."""

from __future__ import annotations

from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.ranged_tensor import RangedTensor, RangeParameter
from tvmquant.frontend.registry import converter
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop


@converter("DynamicQuantizeLinear")
def _convert_dynamic(
    ctx: Context, node: Node
) -> tuple[RangedTensor, RangeParameter, RangeParameter]:
    source = ctx.tensor(0)
    shape = ctx.shape(source)
    ctx.keep_batch(shape, range(len(shape)))
    real = source
    if not ctx.requantize:
        real = ctx.emit(qop.emit(dyn.DYNAMIC_QUANT, [source], {"id": node.name, "fixed": 1}))
    scale, zero_point = (RangeParameter(source, is_scale) for is_scale in (True, False))
    return RangedTensor(real, source), scale, zero_point


def real_by_range(ctx: Context, value: RangedTensor) -> relax.Expr:
    """Return what integers stand for by the range that they were quantized with.

    Raises
    ------
    UnsupportedNodeError
        If the node names another scale or zero point.
    """
    scale, zero_point = ctx.value(1), ctx.value(2)
    fits = all(
        isinstance(parameter, RangeParameter)
        and parameter.is_scale == is_scale
        and parameter.source.same_as(value.source)
        for parameter, is_scale in ((scale, True), (zero_point, False))
    )
    if not fits:
        raise UnsupportedNodeError(
            "it dequantizes integers of DynamicQuantizeLinear with other numbers than the scale "
            "and zero point that came with them; expected these"
        )
    return value.real
