"""ResNet-18 of binary weights and activations, XNOR-Net (Rastegari et al., 2016).

The first convolution, the 1x1 convolutions of shortcuts and the classifier have real weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.models.layers import CentredBatchNorm2d, ConvBNAct
from tvmquant.nn import XNORConv2d

_WIDTHS = (64, 128, 256, 512)
_BLOCKS_IN_A_STAGE = 2


class _Block(nn.Module):
    """Two times normalization, signs and convolution (section 3.2, figure 3), and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            CentredBatchNorm2d(in_channels),
            XNORConv2d(in_channels, out_channels, 3, stride, 1),
            CentredBatchNorm2d(out_channels),
            XNORConv2d(out_channels, out_channels, 3, 1, 1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = ConvBNAct(in_channels, out_channels, 1, stride=stride, activation=None)

    @property
    def residual_convolution(self) -> XNORConv2d:
        return self.branch[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


class XNORResNet18(nn.Module):
    """ResNet-18 whose blocks are binary, with scales of channels and of positions (K).

    Parameters
    ----------
    num_classes : int
        Width of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBNAct(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, padding=1))
        channels = _WIDTHS[0]
        blocks: list[nn.Module] = []
        for width in _WIDTHS:
            for _ in range(_BLOCKS_IN_A_STAGE):
                blocks.append(_Block(channels, width, 2 if width != channels else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks, nn.BatchNorm2d(channels), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 32."""
        return self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
