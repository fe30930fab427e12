"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, 2019) with ReLU6 and no squeeze-and-excitation.

Strided convolutions pad alike on both sides, as PyTorch does, where the TensorFlow original pads
the end only; sizes, parameters and multiplications are the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.models.layers import ConvBNAct, InvertedResidual

# kernel, expansion, output channels, blocks, stride of the first: table 1 of the paper
_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 3, 2),
    (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)
_EPS = 1e-3


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0.

    Parameters
    ----------
    num_classes : int
        Width of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNAct(3, 32, 3, stride=2, activation=nn.ReLU6, eps=_EPS)]
        channels = 32
        for kernel_size, expansion, width, count, first_stride in _STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                layers.append(
                    InvertedResidual(
                        channels, expansion * channels, width, kernel_size, stride, eps=_EPS
                    )
                )
                channels = width
        layers.append(ConvBNAct(channels, 1280, 1, activation=nn.ReLU6, eps=_EPS))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(1280, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 32."""
        return self.head(self.pool(self.features(image)).flatten(1))
