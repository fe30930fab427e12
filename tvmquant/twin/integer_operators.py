"""Torch functions of the integer (L2) operators: equations (1) to (3) of `tvmquant.arithmetic`.

What the integer graph holds in 8 or 16 bits is float32 here, and accumulators are float64, all of
integral value: torch pools, pads and multiplies those fastest, and exactly. Sums of products are
formed in float32 where no sum of magnitudes reaches ``2**24``, in float64 else; equation (3) is
evaluated in int64. So every result equals the numpy oracle's bit for bit.

Layouts are those before `ConvertLayout`, NCHW and OIHW, and epilogues are not fused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor
from tvm import relax

from tvmquant.arithmetic import dot_bounds
from tvmquant.errors import UnsupportedModelError
from tvmquant.ir import quantized_ops as qop
from tvmquant.twin.windows import pad_spatial

# Integers up to here are float32 numbers.
_EXACT_IN_FLOAT32 = 2**24


def _quantize(call: relax.Call) -> Callable[[Tensor], Tensor]:
    a = qop.attributes(call)
    zero, low, high = a["zero_point"], a["qmin"] - a["zero_point"], a["qmax"] - a["zero_point"]
    scale = torch.tensor(a["scale"], dtype=torch.float32)

    def quantize(x: Tensor) -> Tensor:
        steps = torch.round(x.to(torch.float32) / scale.to(x.device))
        return torch.add(torch.clamp(steps, low, high), zero)

    return quantize


def _dequantize(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    a = qop.attributes(call)

    def dequantize(q: Tensor, scale: Tensor) -> Tensor:
        steps = q.to(torch.float32) - a["zero_point"]
        return torch.mul(steps, _along(scale, q, a["axis"]))

    return dequantize


def _qconv2d(call: relax.Call) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    a = _unfused(call)
    dtype = _exact_type(call, a["input_zero_point"])

    def qconv2d(
        x: Tensor, weight: Tensor, bias: Tensor, multiplier: Tensor | None = None
    ) -> Tensor:
        weight = _grouped(weight, multiplier)
        padded = pad_spatial(x.to(dtype), a["padding"], float(a["input_zero_point"]))
        acc = F.conv2d(padded, weight.to(dtype), None, a["strides"], 0, a["dilation"], a["groups"])
        return acc.to(torch.float64) + bias.reshape(-1, 1, 1)

    return qconv2d


def _qconv2d_transpose(call: relax.Call) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Multiply ``x - zero_point``, and give the bias its share of the zero point back.

    What lies between and around the elements of the input holds the zero point, whose products
    with all of the kernel the bias takes off.
    """
    a = _unfused(call)
    zero, groups = a["input_zero_point"], a["groups"]
    dtype = _exact_type(call, zero)
    top, left, bottom, right = a["padding"]
    below, beside = a["output_padding"]

    def qconv2d_transpose(
        x: Tensor, weight: Tensor, bias: Tensor, multiplier: Tensor | None = None
    ) -> Tensor:
        weight = _grouped(weight, multiplier)
        outputs, inputs, *kernel = weight.shape
        by_group = weight.to(dtype).reshape(groups, outputs // groups, inputs, *kernel)
        swapped = by_group.transpose(1, 2).reshape(groups * inputs, outputs // groups, *kernel)
        full = F.conv_transpose2d(
            x.to(dtype) - zero, swapped, None, a["strides"], 0, 0, groups, a["dilation"]
        )
        acc = pad_spatial(full, [-top, -left, below - bottom, beside - right])
        folded = bias + zero * weight.to(torch.float64).sum(dim=(1, 2, 3))
        return torch.add(acc.to(torch.float64), folded.reshape(-1, 1, 1))

    return qconv2d_transpose


def _qdense(call: relax.Call) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    _unfused(call)
    dtype = _exact_type(call, 0)

    def qdense(x: Tensor, weight: Tensor, bias: Tensor, multiplier: Tensor | None = None) -> Tensor:
        weight = _grouped(weight, multiplier)
        return torch.add((x.to(dtype) @ weight.to(dtype).T).to(torch.float64), bias)

    return qdense


def _qmultiply(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    a = _unfused(call)

    def qmultiply(left: Tensor, right: Tensor) -> Tensor:
        first, second = (v.to(torch.float64) for v in (left, right))
        return torch.mul(first - a["a_zero_point"], second - a["b_zero_point"])

    return qmultiply


def _pool_sum(call: relax.Call) -> Callable[[Tensor], Tensor]:
    a = _unfused(call)
    size = a["pool_size"]

    def pool_sum(x: Tensor) -> Tensor:
        steps = pad_spatial(x.to(torch.float64) - a["input_zero_point"], a["padding"])
        if list(steps.shape[2:]) == list(size):
            return steps.sum(dim=(2, 3), keepdim=True)
        taps = torch.ones((1, 1, *size), dtype=torch.float64, device=x.device)
        total = F.conv2d(steps.flatten(0, 1)[:, None], taps, None, a["strides"], 0, a["dilation"])
        return total.reshape(*steps.shape[:2], *total.shape[2:])

    return pool_sum


def _requantize(call: relax.Call) -> Callable[..., Tensor]:
    """Equation (3), in int64."""
    a = qop.attributes(call)
    axis, slopes = a["axis"], bool(a.get("slopes", 0))
    # float32 holds 24 bits
    exact = torch.float64 if a["out_dtype"] == "int32" else torch.float32

    def requantize(
        acc: Tensor, multiplier: Tensor, shift: Tensor, offset: Tensor, *rest: Tensor
    ) -> Tensor:
        terms = [acc.to(torch.int64) - a["acc_zero_point"]]
        rank = max(acc.ndim, rest[0].ndim if len(rest) > 1 else 0)
        like = terms[0].reshape((1,) * (rank - acc.ndim) + tuple(acc.shape))
        factors = [_along(multiplier.to(torch.int64), like, axis)]
        if slopes:
            factors[0] = torch.where(
                terms[0] < 0, _along(rest[0].to(torch.int64), like, axis), factors[0]
            )
        elif rest:
            terms.append(rest[0].to(torch.int64) - a["residual_zero_point"])
            factors.append(_along(rest[1].to(torch.int64), like, axis))
        total = _along(offset.to(torch.int64), like, axis)
        for term, factor in zip(terms, factors, strict=True):
            total = total + term * factor
        steps = _along(shift.to(torch.int64), like, axis)
        half = torch.ones_like(steps) << (steps - 1)
        if a.get("ties_to_even"):
            half = half - 1 + ((total >> steps) & 1)
        q = ((total + half) >> steps) + a["output_zero_point"]
        return torch.clamp(q, a["qmin"], a["qmax"]).to(exact)

    return requantize


def _table(_call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda q, values: values.to(torch.float32)[q.to(torch.int64)]


def _unfused(call: relax.Call) -> dict[str, Any]:
    """Return the attributes of an accumulation.

    Raises
    ------
    UnsupportedModelError
        If an epilogue is fused, or channels are last.
    """
    a = qop.attributes(call)
    if a.get("epilogue") or a.get("layout", "NCHW") != "NCHW":
        raise UnsupportedModelError(
            "the torch twin computes integer graphs as InsertRequantize gives them, before "
            "FuseEpilogue and ConvertLayout"
        )
    return a


def _grouped(weight: Tensor, multiplier: Tensor | None) -> Tensor:
    """Return levels times the multipliers of their groups: integers of up to 8 bits."""
    return weight if multiplier is None else weight.to(torch.int16) * multiplier


def _exact_type(call: relax.Call, zero_point: int) -> torch.dtype:
    """Return the type in which a layer's sums of products are exact in any order."""
    a = qop.attributes(call)
    operands, multiplier = qop.contraction_operands(call)
    weight = abs(qop.constant_array(operands[1]).astype("int64"))
    if multiplier is not None:
        weight = weight * qop.constant_array(multiplier).astype("int64")
    greatest = max(abs(a["input_qmin"]), abs(a["input_qmax"]), zero_point)
    _, bound = dot_bounds(weight, 0, greatest)
    return torch.float32 if int(bound.max(initial=0)) <= _EXACT_IN_FLOAT32 else torch.float64


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape (1,) and (C,) numbers so that they broadcast along an axis; others do already."""
    if values.ndim != 1:
        return values
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


INTEGER_OPERATORS: dict[str, Callable[[relax.Call], Callable[..., Any]]] = {
    qop.QUANTIZE: _quantize,
    qop.DEQUANTIZE: _dequantize,
    qop.QCONV2D: _qconv2d,
    qop.QCONV2D_TRANSPOSE: _qconv2d_transpose,
    qop.QDENSE: _qdense,
    qop.QMULTIPLY: _qmultiply,
    qop.POOL_SUM: _pool_sum,
    qop.REQUANTIZE: _requantize,
    qop.TABLE: _table,
}
