"""MobileNetV2 at width 1 (Sandler et al., 2018): inverted residuals with ReLU6."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.models.layers import ConvBNAct, InvertedResidual

# expansion, output channels, blocks, stride of the first: table 2 of the paper
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """MobileNetV2 at width 1.

    Parameters
    ----------
    num_classes : int
        Width of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNAct(3, 32, 3, stride=2, activation=nn.ReLU6)]
        channels = 32
        for expansion, width, count, first_stride in _STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(channels, expansion * channels, width, 3, stride))
                channels = width
        layers.append(ConvBNAct(channels, 1280, 1, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(1280, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 32."""
        return self.head(self.pool(self.features(image)).flatten(1))
