"""Torch modules of networks with one-bit and ternary layers.

They train with the gradients that their papers give and are written by `torch.onnx.export` as what
`tvmquant.load_onnx` recognizes: signs, and weights of one magnitude per output channel, or sums of
such. 0 counts as positive everywhere.
"""

from tvmquant.nn.activations import RPReLU, RSign
from tvmquant.nn.freezing import freeze
from tvmquant.nn.gradients import GRADIENTS, Gradient
from tvmquant.nn.layers import BinaryConv2d, BinaryLinear, TernaryConv2d, XNORConv2d
from tvmquant.nn.signs import binarize_weight, sign, ternarize_weight
from tvmquant.nn.sums import ABCConv2d

__all__ = [
    "GRADIENTS",
    "ABCConv2d",
    "BinaryConv2d",
    "BinaryLinear",
    "Gradient",
    "RPReLU",
    "RSign",
    "TernaryConv2d",
    "XNORConv2d",
    "binarize_weight",
    "freeze",
    "sign",
    "ternarize_weight",
]
