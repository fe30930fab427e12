"""The torch twin: runs a Relax graph in PyTorch, for whatever needs speed or gradients."""

from tvmquant.twin.fake_quantize import fake_quantize_half_even
from tvmquant.twin.interpreter import Twin
from tvmquant.twin.program import Edge
from tvmquant.twin.quantizer_module import FakeQuantize, Quantizer

__all__ = ["Edge", "FakeQuantize", "Quantizer", "Twin", "fake_quantize_half_even"]
