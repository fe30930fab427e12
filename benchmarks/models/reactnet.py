"""ReActNets (Liu et al., 2020): signs above learned thresholds, a shortcut around every layer.

ReActNet-A has the shape of MobileNetV1, ReActNet-18 that of ResNet-18 in which each 3x3 convolution
has a shortcut (Bi-Real Net: Liu et al., 2018). The first convolution, the classifier and the 1x1
convolutions of ReActNet-18's shortcuts have real weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.models.layers import CentredBatchNorm2d, ConvBNAct
from tvmquant.nn import BinaryConv2d, RPReLU, RSign

# output channels of ReActNet-A's stem and blocks: those of MobileNetV1 (Howard et al., 2017)
_STEM = 32
_BLOCKS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


class _Duplicate(nn.Module):
    """Concatenate the channels with themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class _Layer(nn.Sequential):
    """A binary convolution of signs, normalized, to be added to a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
    ) -> None:
        super().__init__(
            BinaryConv2d(
                in_channels, out_channels, kernel_size, stride, kernel_size // 2,
                binarize_input=False, gradient="reactnet",
            ),
            CentredBatchNorm2d(out_channels),
        )  # fmt: skip

    @property
    def residual_norm(self) -> nn.BatchNorm2d:
        return self[-1]


class _BasicBlock(nn.Module):
    """One binary convolution around which real numbers pass, and an RPReLU of the sum."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.sign = RSign(in_channels)
        self.layer = _Layer(in_channels, out_channels, 3, stride)
        self.shortcut = shortcut
        self.activation = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(self.sign(x)) + self.shortcut(x))


class _SeparableBlock(nn.Module):
    """A 3x3 convolution of equal channels and one or two 1x1, instead of a separable convolution.

    Two where the channels double: both read the same signs, and are concatenated (section 4.1).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        shortcut = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.spatial = _BasicBlock(in_channels, in_channels, stride, shortcut)
        self.sign = RSign(in_channels)
        self.pointwise = nn.ModuleList(
            _Layer(in_channels, in_channels, 1) for _ in range(out_channels // in_channels)
        )
        self.activation = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(x)
        signs = self.sign(x)
        halves = [layer(signs) + x for layer in self.pointwise]
        return self.activation(halves[0] if len(halves) == 1 else torch.cat(halves, 1))


class _Classifier(nn.Module):
    """A stem, blocks, and a dense layer of what the positions average to."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W)."""
        return self.head(self.pool(self.blocks(self.stem(image))).flatten(1))


def reactnet_a(num_classes: int) -> nn.Module:
    """Define ReActNet-A; H and W are multiples of 32."""
    blocks: list[nn.Module] = []
    channels = _STEM
    for width in _BLOCKS:
        # the first block doubles the channels at the size of the stem
        stride = 2 if width != channels and channels != _STEM else 1
        blocks.append(_SeparableBlock(channels, width, stride))
        channels = width
    return _Classifier(
        ConvBNAct(3, _STEM, 3, stride=2, activation=None), blocks, channels, num_classes
    )


def reactnet18(num_classes: int) -> nn.Module:
    """Define ReActNet-18; H and W are multiples of 32."""
    stem = nn.Sequential(
        ConvBNAct(3, 64, 7, stride=2, activation=None), nn.MaxPool2d(3, 2, padding=1)
    )
    blocks = _basic_blocks((64, 128, 256, 512), 4, _projected)
    return _Classifier(stem, blocks, 512, num_classes)


def reactnet20(num_classes: int, width: int = 16) -> nn.Module:
    """Define ReActNet-20 for images of CIFAR-10: ResNet-20 (He et al., 2016) of ReActNet's blocks.

    Its shortcuts have no weights: channels double by concatenation, from ``width`` to four times
    that. H and W are multiples of 4.
    """
    stem = ConvBNAct(3, width, 3, activation=None)
    blocks = _basic_blocks((width, 2 * width, 4 * width), 6, _duplicated)
    return _Classifier(stem, blocks, 4 * width, num_classes)


def _basic_blocks(
    widths: tuple[int, ...], count: int, reduction: Callable[[int], nn.Module]
) -> list[nn.Module]:
    """Return stages of ``count`` blocks; a stage's first but the first's halves the picture."""
    blocks: list[nn.Module] = []
    channels = widths[0]
    for width in widths:
        for _ in range(count):
            reduces = width != channels
            shortcut = reduction(channels) if reduces else nn.Identity()
            blocks.append(_BasicBlock(channels, width, 2 if reduces else 1, shortcut))
            channels = width
    return blocks


def _projected(channels: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(2), ConvBNAct(channels, 2 * channels, 1, activation=None))


def _duplicated(channels: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(2), _Duplicate())
