"""InceptionV3 (Szegedy et al., 2016) without the auxiliary head."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from benchmarks.models.layers import ConvBNAct

_conv = functools.partial(ConvBNAct, eps=1e-3)


class _Branches(nn.Module):
    """Concatenate what each branch makes of the same input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _average_pool() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, 1, padding=1)


def _figure_5(in_channels: int, pool_channels: int) -> _Branches:
    """Two 3x3 convolutions in the place of a 5x5 (figure 5 of the paper), 5x5 kept beside."""
    return _Branches(
        _conv(in_channels, 64, 1),
        nn.Sequential(_conv(in_channels, 48, 1), _conv(48, 64, 5)),
        nn.Sequential(_conv(in_channels, 64, 1), _conv(64, 96, 3), _conv(96, 96, 3)),
        nn.Sequential(_average_pool(), _conv(in_channels, pool_channels, 1)),
    )


def _reduction_to_17(in_channels: int) -> _Branches:
    return _Branches(
        _conv(in_channels, 384, 3, stride=2, padding=0),
        nn.Sequential(
            _conv(in_channels, 64, 1), _conv(64, 96, 3), _conv(96, 96, 3, stride=2, padding=0)
        ),
        nn.MaxPool2d(3, 2),
    )


def _figure_6(width: int) -> _Branches:
    """7x7 convolutions factored into 1x7 and 7x1 (figure 6 of the paper, n = 7)."""
    return _Branches(
        _conv(768, 192, 1),
        nn.Sequential(_conv(768, width, 1), _conv(width, width, (1, 7)), _conv(width, 192, (7, 1))),
        nn.Sequential(
            _conv(768, width, 1),
            _conv(width, width, (7, 1)),
            _conv(width, width, (1, 7)),
            _conv(width, width, (7, 1)),
            _conv(width, 192, (1, 7)),
        ),
        nn.Sequential(_average_pool(), _conv(768, 192, 1)),
    )


def _reduction_to_8() -> _Branches:
    return _Branches(
        nn.Sequential(_conv(768, 192, 1), _conv(192, 320, 3, stride=2, padding=0)),
        nn.Sequential(
            _conv(768, 192, 1),
            _conv(192, 192, (1, 7)),
            _conv(192, 192, (7, 1)),
            _conv(192, 192, 3, stride=2, padding=0),
        ),
        nn.MaxPool2d(3, 2),
    )


def _figure_7(in_channels: int) -> _Branches:
    """Filter banks that end in parallel 1x3 and 3x1 convolutions (figure 7 of the paper)."""
    return _Branches(
        _conv(in_channels, 320, 1),
        nn.Sequential(
            _conv(in_channels, 384, 1),
            _Branches(_conv(384, 384, (1, 3)), _conv(384, 384, (3, 1))),
        ),
        nn.Sequential(
            _conv(in_channels, 448, 1),
            _conv(448, 384, 3),
            _Branches(_conv(384, 384, (1, 3)), _conv(384, 384, (3, 1))),
        ),
        nn.Sequential(_average_pool(), _conv(in_channels, 192, 1)),
    )


class InceptionV3(nn.Module):
    """InceptionV3 without the auxiliary head.

    Parameters
    ----------
    num_classes : int
        Width of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(3, 32, 3, stride=2, padding=0),
            _conv(32, 32, 3, padding=0),
            _conv(32, 64, 3),
            nn.MaxPool2d(3, 2),
            _conv(64, 80, 1),
            _conv(80, 192, 3, padding=0),
            nn.MaxPool2d(3, 2),
            _figure_5(192, 32),
            _figure_5(256, 64),
            _figure_5(288, 64),
            _reduction_to_17(288),
            _figure_6(128),
            _figure_6(160),
            _figure_6(160),
            _figure_6(192),
            _reduction_to_8(),
            _figure_7(1280),
            _figure_7(2048),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2048, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W), H and W at least 75."""
        return self.head(self.pool(self.features(image)).flatten(1))
