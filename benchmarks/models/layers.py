"""Layers that several of the network families share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class CentredBatchNorm2d(nn.BatchNorm2d):
    """A normalization behind which no rectifier stands, but a sum or signs."""


class ConvBNAct(nn.Sequential):
    """Convolve without bias, normalize, activate.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    kernel_size : int or (int, int)
        Height and width of the window. The padding keeps the size at stride 1 unless `padding`
        says otherwise.
    stride, groups : int
        As in `torch.nn.Conv2d`.
    padding : int or (int, int), optional
        Zeros on either side; half the kernel by default.
    activation : callable, optional
        Builds the activation; None ends with the normalization.
    eps : float
        Added to the variance by the normalization.
    convolution : callable
        Builds the convolution, as `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        eps: float = 1e-5,
        convolution: Callable[..., nn.Module] = nn.Conv2d,
    ) -> None:
        if isinstance(kernel_size, int):
            kernel_size = (kernel_size, kernel_size)
        if padding is None:
            padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        layers: list[nn.Module] = [
            convolution(
                in_channels,
                out_channels,
                kernel_size,
                stride=stride,
                padding=padding,
                groups=groups,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels, eps=eps),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The normalization."""
        return self[1]

    @property
    def is_linear(self) -> bool:
        """Whether the layer ends with the normalization."""
        return len(self) == 2


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel on its own, project without activation.

    The input is added back where the stride is 1 and the channels are as many. An expansion of 1
    leaves the first convolution out (Sandler et al., 2018, section 3.3).

    Parameters
    ----------
    in_channels, expanded_channels, out_channels : int
        Channels before, inside and after.
    kernel_size, stride : int
        Window and step of the depthwise convolution.
    activation : callable
        Builds the activation after the expansion and after the depthwise convolution.
    eps : float
        Added to the variance by every normalization.
    gate : torch.nn.Module, optional
        Follows the depthwise convolution, such as a squeeze-and-excitation.
    """

    def __init__(
        self,
        in_channels: int,
        expanded_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU6,
        eps: float = 1e-5,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded_channels != in_channels:
            layers.append(
                ConvBNAct(in_channels, expanded_channels, 1, activation=activation, eps=eps)
            )
        layers.append(
            ConvBNAct(
                expanded_channels,
                expanded_channels,
                kernel_size,
                stride=stride,
                groups=expanded_channels,
                activation=activation,
                eps=eps,
            )
        )
        if gate is not None:
            layers.append(gate)
        layers.append(ConvBNAct(expanded_channels, out_channels, 1, activation=None, eps=eps))
        self.layers = nn.Sequential(*layers)
        self.adds_input = stride == 1 and in_channels == out_channels

    @property
    def residual_norm(self) -> nn.BatchNorm2d | None:
        """The normalization whose output is added to the input, if it is."""
        return self.layers[-1].norm if self.adds_input else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x, (N, C, H, W)."""
        y = self.layers(x)
        return x + y if self.adds_input else y


class SqueezeExcitation(nn.Module):
    """Scale each channel by a hard sigmoid of what all channels average to.

    The layer between is a quarter as wide, rounded to a multiple of 8 (Howard et al., 2019).

    Parameters
    ----------
    channels : int
        Channels of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of x, (N, C, H, W)."""
        return x * self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))
