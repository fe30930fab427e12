"""The integer (L2) operators, by the functions of `tvmquant.arithmetic`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tvmquant import arithmetic
from tvmquant.arithmetic import Array
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.simulator import accumulate
from tvmquant.simulator.calls import (
    OpCall,
    Operator,
    aligned,
    batch_slices,
    channel_axis,
    from_nchw,
    to_nchw,
)
from tvmquant.simulator.windows import pad_spatial, reduce_windows

# int64 temporaries alive at once in a requantization, per element
_REQUANTIZE_BYTES = 8 * 6
_INT32 = np.iinfo(np.int32)


def quantize(call: OpCall) -> Array:
    """Equation (1)."""
    a = call.attrs
    return arithmetic.quantize_half_even(
        call.args[0], a["scale"], a["zero_point"], a["qmin"], a["qmax"], a["out_dtype"]
    )


def dequantize(call: OpCall) -> Array:
    """Equation (2); a scale of shape (C,) lies along ``axis``."""
    q, scale = call.args
    scale = aligned(scale, q.ndim, call)
    return arithmetic.dequantize(q, scale, call.attrs["zero_point"])


def qconv2d(call: OpCall) -> Array:
    """Convolution with an optional fused epilogue."""
    return _convolve(call, accumulate.conv2d)


def qconv2d_transpose(call: OpCall) -> Array:
    """Transposed convolution with an optional fused epilogue."""
    padding = call.attrs["output_padding"]
    return _convolve(call, partial(accumulate.conv2d_transpose, output_padding=padding))


def _convolve(call: OpCall, operation: Callable[..., Array]) -> Array:
    x, weight, bias, first = _operands(call)
    a = call.attrs
    acc = operation(
        to_nchw(x, call),
        to_nchw(weight, call),
        bias,
        strides=a["strides"],
        padding=a["padding"],
        dilation=a["dilation"],
        groups=a["groups"],
        pad_value=a["input_zero_point"],
        layer=call.layer,
    )
    return _finish(from_nchw(acc, call), call, first, channel_axis(call))


def qdense(call: OpCall) -> Array:
    """Dense product over the last axis with an optional fused epilogue."""
    x, weight, bias, first = _operands(call)
    return _finish(accumulate.dense(x, weight, bias, call.layer), call, first, -1)


def _operands(call: OpCall) -> tuple[Array, Array, Array, int]:
    """Return input, weight times its groups' multipliers, bias, and where the epilogue begins."""
    x, weight, bias = call.args[:3]
    if not call.attrs.get("grouped"):
        return x, weight, bias, 3
    return x, weight.astype(np.int16) * call.args[3], bias, 4


def qmultiply(call: OpCall) -> Array:
    """Elementwise product with an optional fused epilogue."""
    a, b = (x.astype(np.int64) for x in call.args[:2])
    product = (a - call.attrs["a_zero_point"]) * (b - call.attrs["b_zero_point"])
    return _finish(accumulate.to_int32(product, call.layer), call, 2, 1)


def pool_sum(call: OpCall) -> Array:
    """Sum of ``x - zero_point`` over windows with an optional fused epilogue."""
    a = call.attrs
    x = to_nchw(call.args[0], call).astype(np.int64) - a["input_zero_point"]
    padded = pad_spatial(x, a["padding"], 0)
    total = reduce_windows(padded, np.add, a["pool_size"], a["strides"], a["dilation"])
    acc = accumulate.to_int32(total, call.layer)
    return _finish(from_nchw(acc, call), call, 1, channel_axis(call))


def requantize(call: OpCall) -> Array:
    """Equation (3) as an operator of its own."""
    acc, multiplier, shift, offset, *rest = call.args
    negative, residual = _second(rest, call)
    return _requantize(acc, _Epilogue(multiplier, shift, offset, residual, negative), call, 1)


def table(call: OpCall) -> Array:
    """Look up ``values[q]``."""
    return _look_up(call.args[0], call.args[1], call.layer)


@dataclass(frozen=True)
class _Epilogue:
    multiplier: Array
    shift: Array
    offset: Array
    residual: Sequence[Array]  # empty, or the second accumulator and its multiplier
    negative: Array | None = None  # the multiplier of what is below 0


def _second(rest: Sequence[Array], call: OpCall) -> tuple[Array | None, Sequence[Array]]:
    """Return the multiplier of negative terms and the second term, of which one may be there."""
    return (rest[0], []) if call.attrs.get("slopes") else (None, rest)


def _finish(acc: Array, call: OpCall, first: int, default_axis: int) -> Array:
    """Apply the fused epilogue whose operands start at ``call.args[first]``, if there is one."""
    a = call.attrs
    if not a.get("epilogue"):
        return acc.astype(a["out_dtype"])
    multiplier, shift, offset, *rest = call.args[first:]
    second = rest[:2] if a.get("residual") or a.get("slopes") else []
    negative, residual = _second(second, call)
    epilogue = _Epilogue(multiplier, shift, offset, residual, negative)
    q = _requantize(acc, epilogue, call, default_axis)
    return _look_up(q, rest[-1], call.layer) if a.get("values") else q


def _look_up(q: Array, values: Array, layer: str) -> Array:
    if q.size and (int(q.min()) < 0 or int(q.max()) >= len(values)):
        raise QuantizationError(
            f"layer {layer}: values in [{q.min()}, {q.max()}] do not index a table of "
            f"{len(values)} entries; tables take uint8 values"
        )
    result: Array = values[q]
    return result


def _requantize(acc: Array, epilogue: _Epilogue, call: OpCall, default_axis: int) -> Array:
    """Evaluate equation (3) over slices of the leading axis."""
    a = call.attrs
    accs = [acc, *epilogue.residual[:1]]
    zeros = (a.get("acc_zero_point", 0), a.get("residual_zero_point", 0))
    shape = np.broadcast_shapes(*(x.shape for x in accs))
    multipliers, shift, offset = (
        [aligned(m, len(shape), call, default_axis) for m in group]
        for group in (
            (epilogue.multiplier, *epilogue.residual[1:]),
            (epilogue.shift,),
            (epilogue.offset,),
        )
    )
    if epilogue.negative is not None:
        negative = aligned(epilogue.negative, len(shape), call, default_axis)
        below = acc.astype(np.int64) < zeros[0]
        multipliers[0] = np.where(below, negative, multipliers[0])
    result = np.empty(shape, a["out_dtype"])
    per_row = _REQUANTIZE_BYTES * int(np.prod(shape[1:]))
    for part in batch_slices(shape[0] if shape else 1, per_row):
        terms = [
            (_rows(x, part, shape), zero, _rows(m, part, shape))
            for x, zero, m in zip(accs, zeros, multipliers, strict=False)
        ]
        numbers = (_rows(offset[0], part, shape), _rows(shift[0], part, shape))
        if a.get("compute_dtype") == "int32":
            _check_int32(terms, *numbers, a["output_zero_point"], call.layer)
        result[part if shape else ()] = arithmetic.requantize(
            terms, *numbers, a["output_zero_point"], a["qmin"], a["qmax"], a["out_dtype"],
            ties_to_even=bool(a.get("ties_to_even")),
        )  # fmt: skip
    return result


def _check_int32(
    terms: Sequence[tuple[Array, int, Array]],
    offset: Array,
    shift: Array,
    zero_point: int,
    layer: str,
) -> None:
    """Check the claim of range analysis that 32-bit registers suffice for equation (3)."""
    total = offset.astype(np.int64)
    steps = shift.astype(np.int64)
    for acc, zero, multiplier in terms:
        product = (acc.astype(np.int64) - zero) * multiplier.astype(np.int64)
        total = total + product
        _require_int32(product, "a product of equation (3)", layer)
        _require_int32(total, "a sum of equation (3)", layer)
    _require_int32(total + (np.int64(1) << (steps - 1)), "the sum before the shift", layer)
    _require_int32(total + (np.int64(zero_point) << steps), "the sum with the zero point", layer)


def _require_int32(values: Array, what: str, layer: str) -> None:
    if values.size and (int(values.min()) < _INT32.min or int(values.max()) > _INT32.max):
        raise QuantizationError(
            f"layer {layer}: {what} reaches [{values.min()}, {values.max()}] and leaves int32, "
            "although range analysis chose 32 bits for it (compute_dtype)"
        )


def _rows(values: Array, part: slice, shape: tuple[int, ...]) -> Array:
    """Take the rows of ``part`` from an array that broadcasts against ``shape``."""
    whole = values.ndim < len(shape) or not shape or values.shape[0] == 1
    return values if whole else values[part]


INTEGER_OPS: dict[str, Operator] = {
    qop.QUANTIZE: quantize,
    qop.DEQUANTIZE: dequantize,
    qop.QCONV2D: qconv2d,
    qop.QCONV2D_TRANSPOSE: qconv2d_transpose,
    qop.QDENSE: qdense,
    qop.QMULTIPLY: qmultiply,
    qop.POOL_SUM: pool_sum,
    qop.REQUANTIZE: requantize,
    qop.TABLE: table,
}
