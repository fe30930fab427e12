"""A U-Net-like network (Ronneberger et al., 2015) with padded, batch-normalized convolutions.

The way back up is either a 2x2 transposed convolution or a nearest-neighbour resize by 2 followed
by a convolution, so that both spellings of upsampling are measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.models.layers import ConvBNAct

_WIDTHS = (16, 32, 64, 128)


def _double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvBNAct(in_channels, out_channels, 3), ConvBNAct(out_channels, out_channels, 3)
    )


def _up_by_transposed_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _up_by_resize(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2.0, mode="nearest"), ConvBNAct(in_channels, out_channels, 3)
    )


class UNet(nn.Module):
    """An encoder and a decoder of four levels with concatenated skip connections.

    Parameters
    ----------
    num_classes : int
        Channels of the output map.
    up : callable
        Builds the layers that double the size, from their input and output channels.
    """

    def __init__(self, num_classes: int, up: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        inputs = (3, *_WIDTHS[:-1])
        self.down = nn.ModuleList(map(_double_convolution, inputs, _WIDTHS))
        self.pool = nn.MaxPool2d(2)
        decoded = _WIDTHS[-2::-1]
        self.up = nn.ModuleList(up(2 * width, width) for width in decoded)
        self.merge = nn.ModuleList(_double_convolution(2 * width, width) for width in decoded)
        self.head = nn.Conv2d(_WIDTHS[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes, H, W) of images (N, 3, H, W), H and W multiples of 8."""
        x = self.down[0](image)
        skips = [x]
        for down in self.down[1:]:
            x = down(self.pool(x))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


def unet(num_classes: int) -> UNet:
    """Define the variant that goes up by transposed convolutions."""
    return UNet(num_classes, _up_by_transposed_convolution)


def unet_resize(num_classes: int) -> UNet:
    """Define the variant that goes up by nearest-neighbour resizing."""
    return UNet(num_classes, _up_by_resize)
