"""Maxima and sums of windows."""

from __future__ import annotations

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, integers, nhwc_shape, static_shape
from tvmquant.passes.lowering.emitter import Handler, Lowerer
from tvmquant.passes.lowering.epilogues import epilogue_of, unfolded
from tvmquant.schedules import pool

_MAXIMA = ("uint8", "int16")


def _pool_sum(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    attrs = qop.attributes(call)
    x, *extra = (lowerer.lookup(a) for a in call.args)
    epilogue = epilogue_of(attrs, extra)
    static, vectors, shape = unfolded(epilogue)
    spec = pool.SumPoolSpec(
        nhwc_shape(x), tuple(attrs["pool_size"]), tuple(attrs["strides"]),
        tuple(attrs["padding"]), tuple(attrs["dilation"]), nhwc_shape(call)[1:3],
        dtype_of(x), attrs["input_zero_point"], static, shape,
        epilogue.residual_dtype if epilogue is not None else "uint8",
    )  # fmt: skip
    kernel = pool.kernel(spec, lowerer.machine)
    return lowerer.call(kernel, [x, *vectors], call.ty, call)


def _max_pool(lowerer: Lowerer, call: relax.Call) -> relax.Expr | None:
    a = call.attrs
    if str(a.layout) != "NHWC" or dtype_of(call) not in _MAXIMA:
        return None
    x = lowerer.lookup(call.args[0])
    size, strides, padding, dilation = (
        integers(getattr(a, key)) for key in ("pool_size", "strides", "padding", "dilation")
    )
    spec = pool.MaxPoolSpec(
        nhwc_shape(x), size, strides, padding, dilation, nhwc_shape(call)[1:3], dtype_of(x)
    )
    return lowerer.call(pool.kernel(spec, lowerer.machine), [x], call.ty, call)


def _global_max(lowerer: Lowerer, call: relax.Call) -> relax.Expr | None:
    x = lowerer.lookup(call.args[0])
    rank = len(static_shape(x))
    axes = [int(v) % rank for v in (call.attrs.axis or [])]
    if rank != 4 or sorted(axes) != [1, 2] or dtype_of(call) not in _MAXIMA:
        return None
    shape = nhwc_shape(x)
    spec = pool.MaxPoolSpec(
        shape, (shape[1], shape[2]), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1), dtype_of(x)
    )
    out = relax.TensorType((shape[0], 1, 1, shape[3]), dtype_of(x))
    result = lowerer.call(pool.kernel(spec, lowerer.machine), [x], out, call)
    return lowerer.reshaped(result, static_shape(call))


HANDLERS: dict[str, Handler] = {
    qop.POOL_SUM: _pool_sum,
    "relax.nn.max_pool2d": _max_pool,
    "relax.max": _global_max,
}
