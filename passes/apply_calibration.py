"""Give every fake_quant its scale and zero point (still L1).

Before::

    lv_q = fake_quant(lv, scale=[0.], zero_point=[0]) {calibrated: 0, bits: 8, scheme: "asymmetric"}

After::

    lv_q = fake_quant(lv, scale=[0.0235], zero_point=[0]) {calibrated: 1, qmin: 0, qmax: 255}

Activations take theirs from calibrated ranges, weights from their own values (symmetric, per
channel). Requires an annotated graph; fake_quants that are already calibrated are left alone.
Signed symmetric activations of up to 8 bits are stored with zero point 2**(bits - 1), so that all
activations share the container ``uint8``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.errors import QuantizationError
from tvmquant.passes import quantized_ops as qop
from tvmquant.passes.rewriter import DataflowRewriter
from tvmquant.quantizer import affine_parameters, grouped_weight_scales, weight_scales


class _Filler(DataflowRewriter):
    def __init__(
        self, module: tvm.IRModule, ranges: Mapping[str, tuple[float, float]], weight_method: str
    ) -> None:
        super().__init__(module)
        self.ranges = ranges
        self.weight_method = weight_method

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value)
        if attrs["calibrated"]:
            return None
        x = self.lookup(value.args[0])
        fill = self._weight if attrs["role"] == "weight" else self._activation
        constants, filled = fill(x, attrs)
        return qop.emit(
            qop.FAKE_QUANT,
            [x, *(qop.constant(array) for array in constants)],
            attrs | filled | {"calibrated": 1},
            value.span,
        )

    def _activation(self, _x: relax.Expr, attrs: dict[str, Any]) -> tuple[list[Any], Any]:
        if attrs["id"] not in self.ranges:
            raise QuantizationError(
                f"no calibrated range for the tensor {attrs['id']!r}; calibrate this model again"
            )
        low, high = self.ranges[attrs["id"]]
        bits = attrs["bits"]
        scale, zero, qmin, qmax = affine_parameters(low, high, bits=bits, scheme=attrs["scheme"])
        if qmin < 0 and bits <= 8:
            half = 1 << (bits - 1)
            zero, qmin, qmax = zero + half, qmin + half, qmax + half
        constants = [np.asarray([scale], np.float32), np.asarray([zero], np.int32)]
        return constants, {"qmin": qmin, "qmax": qmax}

    def _weight(self, x: relax.Expr, attrs: dict[str, Any]) -> tuple[list[Any], Any]:
        bits, axis, group = attrs["bits"], attrs["axis"], attrs.get("w_group", 0)
        weight = qop.constant_array(x)
        multipliers = []
        if group:
            scales, multiplier = grouped_weight_scales(weight, group, axis, bits)
            multipliers = [multiplier]
        else:
            scales = weight_scales(weight, axis, bits, method=self.weight_method)
        limit = (1 << (bits - 1)) - 1
        constants = [scales.astype(np.float32), np.zeros(1, np.int32), *multipliers]
        return constants, {"qmin": -limit, "qmax": limit}


@tvm.ir.transform.module_pass(opt_level=0, name="ApplyCalibration")
class ApplyCalibration:
    """Fill in scales and zero points.

    Parameters
    ----------
    ranges : mapping of str to (float, float)
        Range in real units of every activation edge, by fake_quant id.
    weight_method : str
        ``"minmax"`` or ``"mse"``: how the per-channel weight scale is chosen.

    Raises
    ------
    QuantizationError
        If an activation has no range.
    """

    def __init__(
        self, ranges: Mapping[str, tuple[float, float]], weight_method: str = "mse"
    ) -> None:
        self.ranges = ranges
        self.weight_method = weight_method

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the calibrated module."""
        return _Filler(module, self.ranges, self.weight_method).rewrite()
