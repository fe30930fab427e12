"""ResNet-20 for pictures of 32 x 32 (He et al., 2016, section 4.2), shortcuts without weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.layers import ConvBNAct

WIDTHS = (16, 32, 64)
BLOCKS = 3


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if in_channels == channels else 2
        self.more = channels - in_channels
        self.branch = nn.Sequential(
            ConvBNAct(in_channels, channels, 3, stride=self.stride),
            ConvBNAct(channels, channels, 3, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.more:
            half = self.more // 2
            shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.more - half))
        return functional.relu(self.branch(x) + shortcut)


class ResNet20(nn.Sequential):
    """The network."""

    def __init__(self, classes: int = 10) -> None:
        channels = [WIDTHS[0], *(width for width in WIDTHS for _ in range(BLOCKS))]
        blocks = map(_Block, channels[:-1], channels[1:])
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], classes)
        super().__init__(ConvBNAct(3, WIDTHS[0], 3), *blocks, *head)
