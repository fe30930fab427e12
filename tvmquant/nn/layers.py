"""Convolutions and dense layers of one-bit and ternary weights, kept in float to be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from tvmquant.errors import QuantizationError
from tvmquant.nn.gradients import gradient_named
from tvmquant.nn.signs import binarize_weight, sign, ternarize_weight

Size = int | tuple[int, int]


class LayerOfFewValues(nn.Module, ABC):
    """What the layers below have in common.

    Attributes
    ----------
    weight : parameter (O, ...)
        Real numbers, which the optimizer changes.
    frozen : bool
        Whether the weight is its own few values (`tvmquant.nn.freeze`).
    """

    weight: Tensor
    frozen = False

    @abstractmethod
    def few_values(self) -> Tensor:
        """Return the weight's two or three values per output channel, (O, ...)."""

    def freeze(self) -> None:
        """Forget the real numbers that the few values come from, and keep these."""
        self.weight = nn.Parameter(self.held_weight().detach(), requires_grad=False)
        self.frozen = True

    def held_weight(self) -> Tensor:
        """Return what the layer computes with, (O, ...)."""
        return self.weight if self.frozen else self.few_values()


class BinaryConv2d(LayerOfFewValues, nn.Conv2d):
    """Convolve with ``a_o sign(w)``, of ``sign(x)`` or of what it is given.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of `torch.nn.Conv2d`, but for the bias, which is left out by default: batch normalization
        follows.
    binarize_input : bool
        Whether the input's signs are taken. False for inputs that are signs already, as of `RSign`,
        or that are to be real numbers: the Binary-Weight-Network of the XNOR-Net paper.
    scale : bool
        Whether an output channel's magnitude is ``a = mean |w|``, or 1.
    gradient : str
        Which of `tvmquant.nn.GRADIENTS` takes the place of the signs' derivatives.
    padding_value : float
        What surrounds the input, behind its signs. With 1 or -1 a layer of one bit has two values
        only; 0 is what trained networks mostly have.

    Attributes
    ----------
    weight : parameter (O, I / groups, H, W)
        Real numbers, which the optimizer changes.

    Raises
    ------
    QuantizationError
        If there is no such gradient, or the padding is a word.

    Notes
    -----
    Hubara et al. (2016), "Binarized Neural Networks"; ``a``: Rastegari et al. (2016), "XNOR-Net",
    eq. (6). ``padding_value`` 1: Bannink et al. (2021), "Larq Compute Engine".

    Examples
    --------
    >>> import torch
    >>> layer = BinaryConv2d(8, 16, 3, padding=1, gradient="bireal")
    >>> layer(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 16, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        binarize_input: bool = True,
        scale: bool = True,
        gradient: str = "ste",
        padding_value: float = 0.0,
    ) -> None:
        gradient_named(gradient)
        if isinstance(padding, str):
            raise QuantizationError(f"padding={padding!r}; expected pixels on either side")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.binarize_input = binarize_input
        self.scale = scale
        self.gradient = gradient
        self.padding_value = padding_value
        self.pixels = (padding, padding) if isinstance(padding, int) else padding

    def few_values(self) -> Tensor:
        """Return the weight's two values per output channel, (O, I / groups, H, W)."""
        return binarize_weight(self.weight, self.gradient, scale=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, I, H, W), or its signs."""
        weight = self.held_weight()
        if self.binarize_input:
            x = sign(x, self.gradient)
        rows, columns = self.pixels
        if self.padding_value != 0.0:
            x = nn.functional.pad(x, (columns, columns, rows, rows), value=self.padding_value)
            rows, columns = 0, 0
        return nn.functional.conv2d(
            x, weight, self.bias, self.stride, (rows, columns), self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """Describe the module in a line."""
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        more = f"binarize_input={self.binarize_input}, scale={self.scale}"
        return f"{plain}, {more}, gradient={self.gradient!r}"


class XNORConv2d(BinaryConv2d):
    """Convolve signs with signs, times a magnitude per output channel and one per position.

    ``x * w ~ (sign(x) * sign(w)) K a``: Rastegari et al. (2016), "XNOR-Net", eq. (11).
    ``K = A * k``, ``A`` being the mean of ``|x|`` over channels and ``k`` a box filter.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, bias
        As of `BinaryConv2d`. A bias is added at the end.
    input_scale : bool
        Whether K is computed. Most networks since leave it out: batch normalization does without.
    gradient : str
        As of `BinaryConv2d`. K and A have their own.

    Raises
    ------
    QuantizationError
        If there is no such gradient.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        bias: bool = False,
        *,
        input_scale: bool = True,
        gradient: str = "xnor",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, bias=bias, gradient=gradient
        )
        self.input_scale = input_scale

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the signs of x, (N, I, H, W), and multiply by K."""
        if not self.input_scale:
            return super().forward(x)
        magnitude = nn.functional.avg_pool2d(
            x.abs().mean(1, keepdim=True), self.kernel_size, self.stride, self.pixels
        )
        product = nn.functional.conv2d(
            sign(x, self.gradient), self.held_weight(), None, self.stride, self.pixels
        )
        product = product * magnitude
        return product if self.bias is None else product + self.bias[:, None, None]


class TernaryConv2d(LayerOfFewValues, nn.Conv2d):
    """Convolve real numbers with a weight of -a, 0 and a (`ternarize_weight`).

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of `torch.nn.Conv2d`, but for the bias, which is left out by default.

    Attributes
    ----------
    weight : parameter (O, I / groups, H, W)
        Real numbers, which the optimizer changes.

    Notes
    -----
    Li et al. (2016), "Ternary Weight Networks".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )

    def few_values(self) -> Tensor:
        """Return the weight's three values per output channel, (O, I / groups, H, W)."""
        return ternarize_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, I, H, W)."""
        return nn.functional.conv2d(
            x, self.held_weight(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class BinaryLinear(LayerOfFewValues, nn.Linear):
    """Multiply with ``a_o sign(w)``: `BinaryConv2d` of dense layers.

    Parameters
    ----------
    in_features, out_features, bias
        As of `torch.nn.Linear`, but for the bias, which is left out by default.
    binarize_input, scale, gradient
        As of `BinaryConv2d`.

    Attributes
    ----------
    weight : parameter (O, I)
        Real numbers, which the optimizer changes.

    Raises
    ------
    QuantizationError
        If there is no such gradient.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        binarize_input: bool = True,
        scale: bool = True,
        gradient: str = "ste",
    ) -> None:
        gradient_named(gradient)
        super().__init__(in_features, out_features, bias)
        self.binarize_input = binarize_input
        self.scale = scale
        self.gradient = gradient

    def few_values(self) -> Tensor:
        """Return the weight's two values per output channel, (O, I)."""
        return binarize_weight(self.weight, self.gradient, scale=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x, (..., I), or its signs, by the weight."""
        if self.binarize_input:
            x = sign(x, self.gradient)
        return nn.functional.linear(x, self.held_weight(), self.bias)

    def extra_repr(self) -> str:
        """Describe the module in a line."""
        more = f"binarize_input={self.binarize_input}, scale={self.scale}"
        return f"{super().extra_repr()}, {more}, gradient={self.gradient!r}"
