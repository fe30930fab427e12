"""tvmquant: ONNX in, one integer-only library for TVM's runtime out.

The names below are imported on first use, so that ``import tvmquant`` itself loads neither TVM nor
PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from tvmquant.errors import TVMQuantError

if TYPE_CHECKING:
    from tvmquant.benchmark import compare as compare
    from tvmquant.benchmark import measure as measure
    from tvmquant.bit_choice import BitChoice as BitChoice
    from tvmquant.calibration import Calibration as Calibration
    from tvmquant.compilation import Compilation as Compilation
    from tvmquant.compilation import compile_onnx as compile_onnx
    from tvmquant.compilation import plan_onnx as plan_onnx
    from tvmquant.data import Preprocess as Preprocess
    from tvmquant.data import open_data as open_data
    from tvmquant.deploy.build import build as build
    from tvmquant.deploy.loader import Model as Model
    from tvmquant.deploy.loader import load as load
    from tvmquant.deploy.manifest import Manifest as Manifest
    from tvmquant.evaluation import Evaluation as Evaluation
    from tvmquant.evaluation import evaluate as evaluate
    from tvmquant.export import export_onnx as export_onnx
    from tvmquant.frontend import load_onnx as load_onnx
    from tvmquant.graph import Graph as Graph
    from tvmquant.inspection import preview as preview
    from tvmquant.layers import quantizable_layers as quantizable_layers
    from tvmquant.mixed_precision.wishes import Wishes as Wishes
    from tvmquant.quantization import apply_calibration as apply_calibration
    from tvmquant.quantization import calibrate as calibrate
    from tvmquant.quantization import quantize as quantize
    from tvmquant.report import write_report as write_report
    from tvmquant.sensitivity import estimate_sensitivity as estimate_sensitivity
    from tvmquant.session import reopen as reopen
    from tvmquant.simulator import simulate as simulate
    from tvmquant.training import Recipe as Recipe
    from tvmquant.training import Trained as Trained
    from tvmquant.training import train as train
    from tvmquant.training.reconstruct import reconstruct as reconstruct
    from tvmquant.tuning.tune import tune as tune

_EXPORTS: Final = {
    "BitChoice": "tvmquant.bit_choice",
    "Calibration": "tvmquant.calibration",
    "Compilation": "tvmquant.compilation",
    "Evaluation": "tvmquant.evaluation",
    "Graph": "tvmquant.graph",
    "Manifest": "tvmquant.deploy.manifest",
    "Model": "tvmquant.deploy.loader",
    "Preprocess": "tvmquant.data",
    "Wishes": "tvmquant.mixed_precision.wishes",
    "apply_calibration": "tvmquant.quantization",
    "build": "tvmquant.deploy.build",
    "calibrate": "tvmquant.quantization",
    "compare": "tvmquant.benchmark",
    "compile_onnx": "tvmquant.compilation",
    "estimate_sensitivity": "tvmquant.sensitivity",
    "evaluate": "tvmquant.evaluation",
    "export_onnx": "tvmquant.export",
    "load": "tvmquant.deploy.loader",
    "load_onnx": "tvmquant.frontend",
    "measure": "tvmquant.benchmark",
    "open_data": "tvmquant.data",
    "plan_onnx": "tvmquant.compilation",
    "preview": "tvmquant.inspection",
    "quantizable_layers": "tvmquant.layers",
    "quantize": "tvmquant.quantization",
    "reopen": "tvmquant.session",
    "simulate": "tvmquant.simulator",
    "Recipe": "tvmquant.training",
    "Trained": "tvmquant.training",
    "train": "tvmquant.training",
    "reconstruct": "tvmquant.training.reconstruct",
    "tune": "tvmquant.tuning.tune",
    "write_report": "tvmquant.report",
}

__all__ = ["TVMQuantError", "__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tvmquant")
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'tvmquant' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
