"""A file with quantizers evaluated without the noise of float32: what its equations say.

Between the quantizers onnx's reference implementation computes in float64; quantizers round half to
even, as ONNX defines. Only values within 1e-9 of a step of a tie depend on the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

_DOMAINS = ("", "ai.onnx.ml")
_CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}


class Float64Evaluator:
    """A model, ready to run in float64.

    Parameters
    ----------
    model : onnx.ModelProto
        Of ONNX's own operators.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator

        copy = type(model)()
        copy.CopyFrom(model)
        del copy.opset_import[:]
        copy.opset_import.extend(o for o in model.opset_import if o.domain in _DOMAINS)
        self._evaluator = ReferenceEvaluator(copy, new_ops=_operators())

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return some outputs; floats in float64."""
        return list(self._evaluator.run(list(names), {k: _wide(v) for k, v in feeds.items()}))


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _operators() -> list[type]:
    """Return the operators whose reference implementations leave float64, or are slow."""
    from onnx.reference.op_run import OpRun

    class QuantizeLinear(OpRun):
        def _run(self, x: Any, scale: Any, zero_point: Any = None, axis: int = 1, **_: Any) -> Any:
            zero_point = np.uint8(0) if zero_point is None else zero_point
            levels = np.iinfo(np.asarray(zero_point).dtype)
            q = np.rint(_wide(x) / _along(scale, x, axis)) + _along(zero_point, x, axis)
            return (np.clip(q, levels.min, levels.max).astype(levels.dtype),)

    class DequantizeLinear(OpRun):
        def _run(self, x: Any, scale: Any, zero_point: Any = None, axis: int = 1, **_: Any) -> Any:
            zero_point = 0 if zero_point is None else zero_point
            return ((_wide(x) - _along(zero_point, x, axis)) * _along(scale, x, axis),)

    class Conv(OpRun):
        def _run(
            self, x: Any, w: Any, b: Any = None, auto_pad: Any = None, dilations: Any = None,
            group: int = 1, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
        ) -> Any:  # fmt: skip
            count = x.ndim - 2
            pads = pads or [0] * 2 * count
            sides = [p for i in reversed(range(count)) for p in (pads[i], pads[i + count])]
            found = _CONVOLUTIONS[count](
                torch.nn.functional.pad(_tensor(x), sides), _tensor(w),
                None if b is None else _tensor(b),
                stride=strides or 1, dilation=dilations or 1, groups=group,
            )  # fmt: skip
            return (found.numpy(),)

    class Gemm(OpRun):
        def _run(
            self, a: Any, b: Any, c: Any = 0.0, alpha: float = 1.0, beta: float = 1.0,
            transA: int = 0, transB: int = 0,
        ) -> Any:  # fmt: skip
            a, b = (a.T if transA else a), (b.T if transB else b)
            return (alpha * (_wide(a) @ _wide(b)) + beta * _wide(np.asarray(c)),)

    class BatchNormalization(OpRun):
        def _run(
            self, x: Any, scale: Any, b: Any, mean: Any, var: Any, epsilon: float = 1e-5, **_: Any
        ) -> Any:
            scale, b, mean, var = (_along(value, x, 1) for value in (scale, b, mean, var))
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


def _along(values: Any, like: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Let values, one or one for each channel, broadcast along an axis."""
    values = np.asarray(values, np.float64)
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % like.ndim else 1 for i in range(like.ndim)])


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float64))
