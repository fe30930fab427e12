"""Dialects of quantized models, which nodes of ONNX bring to one form before the import: QDQ."""

from tvmquant.frontend.dialects.rewrite import Rewritten, rewrite_model, rewrite_nodes

__all__ = ["Rewritten", "rewrite_model", "rewrite_nodes"]
