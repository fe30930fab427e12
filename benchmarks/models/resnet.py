"""ResNet-18 and ResNet-50 (He et al., 2016); ResNet-50 as v1.5, with the stride on the 3x3.

ResNet-18 also with binary weights (BWN: Rastegari et al., 2016), of all convolutions in the blocks'
branches: the first, those of shortcuts and the classifier have real ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.models.layers import ConvBNAct
from tvmquant.nn import BinaryConv2d


class _Residual(nn.Module):
    """Add a branch to its input, projected where the shape changes, and rectify the sum."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.relu = nn.ReLU()

    @property
    def residual_norm(self) -> nn.BatchNorm2d:
        return self.branch[-1].norm

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def _block(
    in_channels: int,
    width: int,
    stride: int,
    *,
    bottleneck: bool,
    convolution: Callable[..., nn.Module],
) -> _Residual:
    out_channels = 4 * width if bottleneck else width
    layer = functools.partial(ConvBNAct, convolution=convolution)
    if bottleneck:
        branch = nn.Sequential(
            layer(in_channels, width, 1),
            layer(width, width, 3, stride=stride),
            layer(width, out_channels, 1, activation=None),
        )
    else:
        branch = nn.Sequential(
            layer(in_channels, width, 3, stride=stride),
            layer(width, width, 3, activation=None),
        )
    shortcut: nn.Module = nn.Identity()
    if stride != 1 or in_channels != out_channels:
        shortcut = ConvBNAct(in_channels, out_channels, 1, stride=stride, activation=None)
    return _Residual(branch, shortcut)


class ResNet(nn.Module):
    """A residual network for ImageNet.

    Parameters
    ----------
    blocks : tuple of int
        Residual blocks in each of the four stages.
    bottleneck : bool
        1x1, 3x3, 1x1 convolutions in a block instead of two 3x3.
    num_classes : int
        Width of the output.
    convolution : callable
        Builds the convolutions of the branches, as `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        *,
        bottleneck: bool,
        num_classes: int,
        convolution: Callable[..., nn.Module] = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBNAct(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, padding=1))
        channels = 64
        stages: list[nn.Module] = []
        for stage, count in enumerate(blocks):
            width = 64 << stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                block = _block(
                    channels, width, stride, bottleneck=bottleneck, convolution=convolution
                )
                stages.append(block)
                channels = 4 * width if bottleneck else width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 32."""
        x = self.stages(self.stem(image))
        return self.head(self.pool(x).flatten(1))


def resnet18(num_classes: int) -> ResNet:
    """Define ResNet-18: two blocks of two 3x3 convolutions in each stage."""
    return ResNet((2, 2, 2, 2), bottleneck=False, num_classes=num_classes)


def resnet50(num_classes: int) -> ResNet:
    """Define ResNet-50 v1.5: 3, 4, 6 and 3 bottleneck blocks."""
    return ResNet((3, 4, 6, 3), bottleneck=True, num_classes=num_classes)


def bwn_resnet18(num_classes: int) -> ResNet:
    """Define ResNet-18 of binary weights and real activations."""
    binary = functools.partial(BinaryConv2d, binarize_input=False, gradient="xnor")
    return ResNet((2, 2, 2, 2), bottleneck=False, num_classes=num_classes, convolution=binary)
