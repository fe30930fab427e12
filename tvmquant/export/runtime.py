"""Run an ONNX model: in ONNX Runtime where that is installed, else in onnx's reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
# From arrays by name, those of the inputs among them, to those of the outputs, by name.
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def has_onnxruntime() -> bool:
    """Whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def open_model(model: onnx.ModelProto) -> tuple[str, Run]:
    """Return what runs a model, node by node as it is written, and the function.

    Returns
    -------
    str
        Such as ``ONNX Runtime 1.31.1``.
    callable
    """
    outputs = [output.name for output in model.graph.output]
    return (_onnxruntime if has_onnxruntime() else _reference)(model, outputs)


def _onnxruntime(model: onnx.ModelProto, outputs: Sequence[str]) -> tuple[str, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    wanted = {item.name for item in session.get_inputs()}

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        needed = {name: array for name, array in feeds.items() if name in wanted}
        return dict(zip(outputs, session.run(list(outputs), needed), strict=True))

    return f"ONNX Runtime {onnxruntime.__version__}", run


def _reference(model: onnx.ModelProto, outputs: Sequence[str]) -> tuple[str, Run]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        results = evaluator.run(None, dict(feeds))
        return dict(zip(outputs, map(np.asarray, results), strict=True))

    return f"the reference of onnx {onnx.__version__}", run
