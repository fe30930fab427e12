"""From an annotated graph to an ONNX file in QDQ form, and how far that is from the library."""

from tvmquant.export.model import Exported, export_onnx, to_onnx

__all__ = ["Exported", "export_onnx", "to_onnx"]
