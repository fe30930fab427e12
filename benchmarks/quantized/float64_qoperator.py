"""Operators on integers in float64: dequantize, compute, quantize, with nothing rounded between."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quantized.float64_arithmetic import (
    along,
    convolved,
    dequantized,
    product,
    quantized,
)

MICROSOFT = "com.microsoft"


def operators() -> list[type]:
    """Return implementations for onnx's reference evaluator."""
    from onnx.reference.op_run import OpRun

    class QLinearConv(OpRun):
        def _run(
            self, x: Any, xs: Any, xz: Any, w: Any, ws: Any, wz: Any, ys: Any, yz: Any,
            b: Any = None, **attributes: Any,
        ) -> Any:  # fmt: skip
            bias = None if b is None else b * (np.float64(xs) * np.asarray(ws, np.float64))
            a, weight = dequantized(x, xs, xz), dequantized(w, ws, wz, 0)
            return (quantized(convolved(a, weight, bias, **attributes), ys, yz),)

    class QLinearMatMul(OpRun):
        def _run(
            self, a: Any, a_s: Any, az: Any, b: Any, bs: Any, bz: Any, ys: Any, yz: Any
        ) -> Any:
            found = np.matmul(dequantized(a, a_s, az, -2), dequantized(b, bs, bz, -1))
            return (quantized(found, ys, yz),)

    class QGemm(OpRun):
        op_domain = MICROSOFT

        def _run(
            self, a: Any, a_s: Any, az: Any, b: Any, bs: Any, bz: Any, c: Any = None,
            ys: Any = None, yz: Any = None, transB: int = 0, **attributes: Any,
        ) -> Any:  # fmt: skip
            weight = dequantized(b, bs, bz, 0 if transB else 1)
            found = product(dequantized(a, a_s, az), weight, transB=transB, **attributes)
            if c is not None:
                found = found + c * (np.float64(a_s) * along(bs, found, 1))
            return (found if ys is None else quantized(found, ys, yz),)

    class QLinearConcat(OpRun):
        op_domain = MICROSOFT

        def _run(self, ys: Any, yz: Any, *inputs: Any, axis: int) -> Any:
            parts = [dequantized(*inputs[i : i + 3]) for i in range(0, len(inputs), 3)]
            return (quantized(np.concatenate(parts, axis), ys, yz),)

    class QLinearAdd(OpRun):
        op_domain = MICROSOFT

        def _run(
            self, a: Any, a_s: Any, az: Any, b: Any, bs: Any, bz: Any, ys: Any, yz: Any
        ) -> Any:
            return (quantized(dequantized(a, a_s, az) + dequantized(b, bs, bz), ys, yz),)

    class QLinearMul(OpRun):
        op_domain = MICROSOFT

        def _run(
            self, a: Any, a_s: Any, az: Any, b: Any, bs: Any, bz: Any, ys: Any, yz: Any
        ) -> Any:
            return (quantized(dequantized(a, a_s, az) * dequantized(b, bs, bz), ys, yz),)

    class QLinearGlobalAveragePool(OpRun):
        op_domain = MICROSOFT

        def _run(self, x: Any, xs: Any, xz: Any, ys: Any, yz: Any, channels_last: int = 0) -> Any:
            axes = tuple(range(1, x.ndim - 1) if channels_last else range(2, x.ndim))
            mean = dequantized(x, xs, xz).mean(axes, keepdims=True)
            return (quantized(mean, ys, yz),)

    class QLinearSigmoid(OpRun):
        op_domain = MICROSOFT

        def _run(self, x: Any, xs: Any, xz: Any, ys: Any, yz: Any) -> Any:
            return (quantized(1 / (1 + np.exp(-dequantized(x, xs, xz))), ys, yz),)

    class QLinearLeakyRelu(OpRun):
        op_domain = MICROSOFT

        def _run(self, x: Any, xs: Any, xz: Any, ys: Any, yz: Any, alpha: float = 0.01) -> Any:
            real = dequantized(x, xs, xz)
            return (quantized(np.where(real < 0, alpha * real, real), ys, yz),)

    return [
        QLinearConv, QLinearMatMul, QGemm, QLinearConcat, QLinearAdd, QLinearMul,
        QLinearGlobalAveragePool, QLinearSigmoid, QLinearLeakyRelu,
    ]  # fmt: skip
