"""MobileNetV1 at width 1 (Howard et al., 2017): separable convolutions, the shape of ReActNet-A."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.models.layers import ConvBNAct

# output channels and stride of each separable convolution: table 1 of the paper
_LAYERS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2),
    (1024, 1),
)  # fmt: skip


class MobileNetV1(nn.Module):
    """MobileNetV1 at width 1.

    Parameters
    ----------
    num_classes : int
        Width of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNAct(3, 32, 3, stride=2)]
        channels = 32
        for width, stride in _LAYERS:
            layers.append(ConvBNAct(channels, channels, 3, stride=stride, groups=channels))
            layers.append(ConvBNAct(channels, width, 1))
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 32."""
        return self.head(self.pool(self.features(image)).flatten(1))
