"""MobileNetV3-small (Howard et al., 2019): hard-swish and squeeze-and-excitation."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.models.layers import ConvBNAct, InvertedResidual, SqueezeExcitation

# kernel, expanded channels, output channels, squeeze, hard-swish, stride: table 2 of the paper
_BLOCKS = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
_EPS = 1e-3


class MobileNetV3Small(nn.Module):
    """MobileNetV3-small at width 1.

    Parameters
    ----------
    num_classes : int
        Width of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNAct(3, 16, 3, stride=2, activation=nn.Hardswish, eps=_EPS)]
        channels = 16
        for kernel_size, expanded, width, squeeze, hard_swish, stride in _BLOCKS:
            layers.append(
                InvertedResidual(
                    channels,
                    expanded,
                    width,
                    kernel_size,
                    stride,
                    activation=nn.Hardswish if hard_swish else nn.ReLU,
                    eps=_EPS,
                    gate=SqueezeExcitation(expanded) if squeeze else None,
                )
            )
            channels = width
        layers.append(ConvBNAct(channels, 576, 1, activation=nn.Hardswish, eps=_EPS))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish())
        self.head = nn.Linear(1024, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 32."""
        return self.head(self.hidden(self.pool(self.features(image)).flatten(1)))
