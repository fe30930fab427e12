"""A file with quantizers evaluated without the noise of float32: what its equations say.

Between the quantizers onnx's reference implementation computes in float64; quantizers round half to
even, as ONNX defines. Only values within 1e-9 of a step of a tie depend on the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quantized.float64_arithmetic import (
    along,
    convolved,
    dequantized,
    product,
    quantized,
    wide,
)

if TYPE_CHECKING:
    import onnx

_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")


class Float64Evaluator:
    """A model, ready to run in float64.

    Parameters
    ----------
    model : onnx.ModelProto
        Of ONNX's own operators and of ONNX Runtime's quantized ones.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator

        from benchmarks.quantized.float64_qoperator import operators

        copy = type(model)()
        copy.CopyFrom(model)
        del copy.opset_import[:]
        copy.opset_import.extend(o for o in model.opset_import if o.domain in _DOMAINS)
        self._evaluator = ReferenceEvaluator(copy, new_ops=[*_operators(), *operators()])

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return some outputs; floats in float64."""
        return list(self._evaluator.run(list(names), {k: wide(v) for k, v in feeds.items()}))


def _operators() -> list[type]:
    """Return the operators whose reference implementations leave float64, or are slow."""
    from onnx.reference.op_run import OpRun

    class QuantizeLinear(OpRun):
        def _run(self, x: Any, scale: Any, zero_point: Any = None, axis: int = 1, **_: Any) -> Any:
            return (quantized(x, scale, zero_point, axis),)

    class DequantizeLinear(OpRun):
        def _run(self, x: Any, scale: Any, zero_point: Any = None, axis: int = 1, **_: Any) -> Any:
            return (dequantized(x, scale, zero_point, axis),)

    class Conv(OpRun):
        def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> Any:
            return (convolved(x, w, b, **attributes),)

    class Gemm(OpRun):
        def _run(self, a: Any, b: Any, c: Any = 0.0, beta: float = 1.0, **attributes: Any) -> Any:
            return (product(a, b, **attributes) + beta * wide(np.asarray(c)),)

    class BatchNormalization(OpRun):
        def _run(
            self, x: Any, scale: Any, b: Any, mean: Any, var: Any, epsilon: float = 1e-5, **_: Any
        ) -> Any:
            scale, b, mean, var = (along(value, x, 1) for value in (scale, b, mean, var))
            return ((x - mean) / np.sqrt(var + epsilon) * scale + b,)

    class HardSwish(OpRun):
        def _run(self, x: Any) -> Any:
            return (x * np.clip(x / 6 + 0.5, 0, 1),)

    class HardSigmoid(OpRun):
        def _run(self, x: Any, alpha: float = 0.2, beta: float = 0.5) -> Any:
            return (np.clip(alpha * x + beta, 0, 1),)

    return [
        QuantizeLinear, DequantizeLinear, Conv, Gemm, BatchNormalization, HardSwish, HardSigmoid
    ]  # fmt: skip
