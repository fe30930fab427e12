"""QuickNet-small (Bannink et al., 2021, "Larq Compute Engine"): fast layers between binary ones.

The stem is a 3x3 convolution, a depthwise and a 1x1 one. Sections are joined by a maximum, a blur
(Zhang, 2019) and a 1x1 convolution. Binary weights have magnitude 1 and are surrounded by 1. Where
the publication pads the right and the bottom only (TensorFlow's "same"), all sides are padded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models.layers import CentredBatchNorm2d, ConvBNAct
from tvmquant.nn import BinaryConv2d

_SECTIONS = (32, 64, 256, 512)
_BLOCKS_IN_A_SECTION = 4


class _ResidualBlock(nn.Module):
    """A binary convolution, a rectifier and a normalization, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = BinaryConv2d(channels, channels, 3, padding=1, scale=False, padding_value=1.0)
        self.relu = nn.ReLU()
        self.residual_norm = CentredBatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_norm(self.relu(self.conv(x)))


class BlurPool(nn.Module):
    """The maximum of 2x2 neighbours, blurred by (1, 2, 1) either way, at every other position.

    Parameters
    ----------
    channels : int
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, stride=1)
        line = torch.tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(line, line).repeat(channels, 1, 1, 1)
        self.register_buffer("kernel", kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the picture of x, (N, C, H, W)."""
        return nn.functional.conv2d(self.pool(x), self.kernel, None, 2, 1, 1, len(self.kernel))


class QuickNetSmall(nn.Module):
    """QuickNet-small.

    Parameters
    ----------
    num_classes : int
        Width of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = _SECTIONS[0]
        depthwise = nn.Conv2d(
            channels // 4, channels // 4, 3, 2, 1, groups=channels // 4, bias=False
        )
        layers: list[nn.Module] = [
            ConvBNAct(3, channels // 4, 3, stride=2),
            depthwise,
            nn.BatchNorm2d(channels // 4, affine=False),
            ConvBNAct(channels // 4, channels, 1, activation=None),
        ]
        for width in _SECTIONS:
            if width != channels:
                layers += [nn.ReLU(), BlurPool(channels)]
                layers.append(ConvBNAct(channels, width, 1, activation=None))
            layers += [_ResidualBlock(width) for _ in range(_BLOCKS_IN_A_SECTION)]
            channels = width
        self.layers = nn.Sequential(*layers, nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 32."""
        return self.head(self.pool(self.layers(image)).flatten(1))
