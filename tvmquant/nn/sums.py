"""Convolutions whose weights and inputs are sums of signs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tvmquant.errors import QuantizationError
from tvmquant.nn.layers import LayerOfFewValues, Size
from tvmquant.nn.signs import sign

# Where signs of a weight are the same up to this, they are one.
LEAST_PIVOT = 1e-6


class ABCConv2d(LayerOfFewValues, nn.Conv2d):
    """Convolve sums of signs of the input with a sum of signs, times numbers, of the weight.

    ``x * w ~ sum_n sum_i b_n a_i (A_n * B_i)``, with ``A_n = sign(clip(x + v_n, 0, 1) - 1/2)`` and
    ``B_i = sign(w - mean(w) + u_i std(w))``: a convolution of one bit for each n and i.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of `torch.nn.Conv2d`, but for the bias, which is left out by default.
    weight_terms : int
        M, how many signs make the weight.
    input_terms : int
        N, how many signs make the input.

    Attributes
    ----------
    weight : parameter (O, I / groups, H, W)
        Real numbers, which the optimizer changes.
    input_scale, input_shift : parameter (N,)
        b and v, learned. At first ``1 / N``, and such that signs change at N numbers evenly spread
        between -1/2 and 1/2.

    Raises
    ------
    QuantizationError
        If there are no terms.

    Notes
    -----
    Lin, Zhao and Pan (2017), "Towards Accurate Binary Convolutional Neural Network", eqs. (1) to
    (10): ``u_i = -1 + 2 (i - 1) / (M - 1)``, and a by least squares. The gradient of the weight is
    ``sum_i a_i`` times that of ``B_i``, of which that of a is left out.

    A library adds the M N sums up in whole numbers and rounds once. More than three cost more than
    one convolution of 8 bits.

    Examples
    --------
    >>> import torch
    >>> layer = ABCConv2d(8, 16, 3, padding=1, weight_terms=2)
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
        weight_terms: int = 2,
        input_terms: int = 1,
    ) -> None:
        if weight_terms < 1 or input_terms < 1:
            raise QuantizationError(
                f"a sum of {weight_terms} signs of the weight and {input_terms} of the input; "
                "expected at least one of each"
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.weight_terms = weight_terms
        self.kept = nn.ParameterList()
        count = torch.arange(input_terms, dtype=torch.float32)
        changes = (2.0 * count + 1.0) / (2.0 * input_terms) - 0.5
        self.input_scale = nn.Parameter(torch.full((input_terms,), 1.0 / input_terms))
        self.input_shift = nn.Parameter(0.5 - changes)

    def few_values(self) -> Tensor:
        """Return the sum of signs that stands for the weight, (O, I / groups, H, W)."""
        return sum(self._terms()[1:], self._terms()[0])

    def freeze(self) -> None:
        """Forget the real numbers that the signs come from, and keep these."""
        if self.frozen:
            return
        terms = self._terms()
        super().freeze()
        self.kept.extend(nn.Parameter(t.detach(), requires_grad=False) for t in terms)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, I, H, W)."""
        total: Tensor | None = None
        for scale, shift in zip(self.input_scale, self.input_shift, strict=True):
            signs = sign(torch.clamp(x + shift, 0.0, 1.0) - 0.5)
            products = [self._convolved(signs, term) for term in self._terms()]
            scaled = sum(products[1:], products[0]) * scale
            total = scaled if total is None else total + scaled
        assert total is not None
        return total if self.bias is None else total + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """Describe the module in a line."""
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        terms = f"weight_terms={self.weight_terms}, input_terms={len(self.input_scale)}"
        return f"{plain}, {terms}"

    def _convolved(self, signs: Tensor, term: Tensor) -> Tensor:
        return nn.functional.conv2d(
            signs, term, None, self.stride, self.padding, self.dilation, self.groups
        )

    def _terms(self) -> tuple[Tensor, ...]:
        """Return ``a_i B_i``, each like the weight."""
        if self.frozen:
            return tuple(self.kept)
        return weight_terms(self.weight, self.weight_terms)


def weight_terms(weight: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return ``a_i B_i`` of `ABCConv2d`, each like the weight, with its gradients."""
    terms: tuple[Tensor, ...] = _Terms.apply(weight, count)  # type: ignore[no-untyped-call]
    return terms


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, count: int) -> tuple[Tensor, ...]:
        centred = weight - weight.mean()
        deviation = (centred * centred).mean().sqrt()
        shifts = [2.0 * i / (count - 1) - 1.0 for i in range(count)] if count > 1 else [0.0]
        signs = [torch.where(centred + u * deviation >= 0.0, 1.0, -1.0) for u in shifts]
        scales = _least_squares(weight, signs)
        ctx.save_for_backward(*scales)
        return tuple(scale * plane for scale, plane in zip(scales, signs, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        products = [s * g for s, g in zip(ctx.saved_tensors, gradients, strict=True)]
        return sum(products[1:], products[0]), None


def _least_squares(weight: Tensor, signs: list[Tensor]) -> list[Tensor]:
    """Return the numbers whose products with signs add up to what is nearest to a weight.

    By elimination: exporters know no solver. A sign that others make already gets 0.
    """
    count = len(signs)
    rows = [[(a * b).mean() for b in (*signs, weight)] for a in signs]
    for i in range(count):
        pivot = rows[i][i]
        inverse = torch.where(pivot > LEAST_PIVOT, 1.0 / pivot.clamp_min(LEAST_PIVOT), 0.0)
        rows[i] = [value * inverse for value in rows[i]]
        for j in range(count):
            if j != i:
                rows[j] = [v - rows[j][i] * p for v, p in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]
