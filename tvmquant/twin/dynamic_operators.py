"""Torch functions of tensors whose range is found at run time, as `tvmquant.arithmetic` says.

Integers are float32 or float64 of integral value, as in `integer_operators`; layouts are those
before `ConvertLayout`. Every operation on real numbers is one of float32, as in the definition, so
that the results are its bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tvm import relax

from tvmquant.arithmetic import DYNAMIC_QMAX
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.twin.fake_quantize import along_axis
from tvmquant.twin.windows import pad_spatial


def _range_of(x: Tensor) -> Tensor:
    """Return scale and zero point, equation (4)."""
    known = torch.where(torch.isnan(x), torch.zeros_like(x), x)
    low, high = torch.clamp(known.amin(), max=0.0), torch.clamp(known.amax(), min=0.0)
    scale = torch.clamp((high - low) / DYNAMIC_QMAX, max=torch.finfo(torch.float32).max)
    scale = torch.where(scale > 0.0, scale, torch.ones_like(scale))
    zero_point = torch.clamp(torch.round(-low / scale), 0.0, float(DYNAMIC_QMAX))
    return torch.stack([scale, zero_point])


def _steps(x: Tensor, found: Tensor) -> Tensor:
    """Return integers less their zero point, equation (1); gradients pass as if they were real."""
    scale, zero_point = found
    ratio = x / scale
    steps = torch.clamp(torch.round(ratio.detach()), -zero_point, DYNAMIC_QMAX - zero_point)
    if not ratio.requires_grad:
        return steps
    # exact: the nearest step is 0, or both are within a factor of two of each other
    return torch.add(ratio, steps - ratio.detach())


def _dynamic_quant(_call: relax.Call) -> Callable[[Tensor], Tensor]:
    def dynamic_quant(x: Tensor) -> Tensor:
        found = _range_of(x.detach())
        return _steps(x, found) * found[0]

    return dynamic_quant


def _dynamic_range(_call: relax.Call) -> Callable[[Tensor], Tensor]:
    return lambda x: _range_of(x.to(torch.float32))


def _dynamic_quantize(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    padding = qop.attributes(call)["padding"]

    def dynamic_quantize(x: Tensor, found: Tensor) -> Tensor:
        steps = _steps(x.to(torch.float32), found)
        if any(padding):
            steps = pad_spatial(steps, padding)
        return torch.add(steps, found[1])

    return dynamic_quantize


def _dynamic_dequantize(call: relax.Call) -> Callable[..., Tensor]:
    a = qop.attributes(call)
    axis, low, high = a["axis"], a["low"], a["high"]

    def along(values: Tensor, like: Tensor) -> Tensor:
        return along_axis(values, like, axis) if values.ndim == 1 else values

    def dynamic_dequantize(
        sums: Tensor, found: Tensor, weight_sums: Tensor, scale: Tensor, bias: Tensor,
        *of_windows: Tensor,
    ) -> Tensor:  # fmt: skip
        scale_x, zero_point = found
        total = sums.to(torch.float64)
        total = total - zero_point.to(torch.float64) * along(weight_sums, sums)
        if of_windows:
            window_sums, weight_zero_point = of_windows
            total = total - along(weight_zero_point, sums) * window_sums.to(torch.float64)
        factor = along(scale_x * scale, sums)
        return torch.clamp(total.to(torch.float32) * factor + along(bias, sums), low, high)

    return dynamic_dequantize


DYNAMIC_OPERATORS: dict[str, Callable[[relax.Call], Callable[..., Any]]] = {
    dyn.DYNAMIC_QUANT: _dynamic_quant,
    dyn.DYNAMIC_RANGE: _dynamic_range,
    dyn.DYNAMIC_QUANTIZE: _dynamic_quantize,
    dyn.DYNAMIC_DEQUANTIZE: _dynamic_dequantize,
}
