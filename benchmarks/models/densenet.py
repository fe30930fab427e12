"""DenseNet-121 (Huang et al., 2017): normalization before convolution, every input concatenated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_GROWTH = 32
_BOTTLENECK = 4 * _GROWTH
_BLOCKS = (6, 12, 24, 16)


class _DenseLayer(nn.Module):
    """Append `_GROWTH` channels computed from all the channels so far."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, _BOTTLENECK, 1, bias=False),
            nn.BatchNorm2d(_BOTTLENECK),
            nn.ReLU(),
            nn.Conv2d(_BOTTLENECK, _GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def _transition(in_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )


class DenseNet121(nn.Module):
    """DenseNet-121 with growth 32.

    Parameters
    ----------
    num_classes : int
        Width of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = 64
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        ]
        for block, count in enumerate(_BLOCKS):
            for _ in range(count):
                layers.append(_DenseLayer(channels))
                channels += _GROWTH
            if block < len(_BLOCKS) - 1:
                layers.append(_transition(channels))
                channels //= 2
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 32."""
        return self.head(self.pool(self.features(image)).flatten(1))
