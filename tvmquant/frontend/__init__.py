"""The way in: ONNX models become float graphs in Relax (level L0)."""

from tvmquant.frontend.load import load_onnx

__all__ = ["load_onnx"]
