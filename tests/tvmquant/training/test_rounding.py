"""Gradients of rounding, against their formulas in numpy."""

import numpy as np
import pytest
import torch

from tvmquant.training import rounding
from tvmquant.training.rounding import SHAPES, quantized, rounded

DELTA, ALPHA = 0.3, 1.9


def _shape(name: str, error: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Write the formulas of the module once more."""
    return {
        "ste": 0.0 * error,
        "pbgs": np.abs(error),
        "ewgs": sign * error,
        "acos": np.sin(np.pi * error),
        "tanh": sign * np.tanh(ALPHA * error),
        "invtanh": sign * np.arctanh(ALPHA * error),
    }[name]


def _expected(x, g, scale, low, high, shape):
    """Return the result, and the gradients of x and of the scale."""
    v = x / scale
    inside = (v >= low) & (v <= high)
    whole = np.round(np.clip(v, low, high))
    factor = 1.0 + DELTA * _shape(shape, np.where(inside, v - whole, 0.0), np.sign(g))
    dx = np.where(inside, g * factor, 0.0)
    return whole * scale, dx, g * whole - dx * v


@pytest.mark.parametrize("piece", [16, 1 << 17])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_have_the_published_shapes(shape, piece, monkeypatch) -> None:
    monkeypatch.setattr(rounding, "PIECE", piece)
    random = np.random.default_rng(0)
    x, g = random.normal(0.0, 3.0, (2, 7, 5, 4))
    for scale, low, high in ((0.7, -3, 4), (random.uniform(0.3, 0.9, (1, 5, 1)), 0, 7)):
        tensors = [torch.tensor(a, dtype=torch.float64) for a in (x, scale)]
        for tensor in tensors:
            tensor.requires_grad_()
        ends = [torch.tensor(float(end), dtype=torch.float64) for end in (low, high)]
        found = quantized(*tensors, *ends, shape=shape, delta=DELTA, alpha=ALPHA)
        found.backward(torch.tensor(g))
        result, dx, d_scale = _expected(x, g, scale, low, high, shape)
        np.testing.assert_allclose(found.detach(), result, rtol=0, atol=1e-12)
        np.testing.assert_allclose(tensors[0].grad, dx, rtol=0, atol=1e-7)
        axes = (0, 2) if np.ndim(scale) else None
        total = d_scale.sum(axes, keepdims=np.ndim(scale) > 0)
        np.testing.assert_allclose(tensors[1].grad, total, rtol=1e-7)


def test_ends_have_the_gradient_of_what_they_clip() -> None:
    x = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64)
    low, high = (torch.tensor(end, dtype=torch.float64).requires_grad_() for end in (-2.3, 1.6))
    scale = torch.tensor(0.5, dtype=torch.float64)
    quantized(x, scale, low, high).sum().backward()
    assert float(low.grad) == 0.5 * int((x / 0.5 < -2.3).sum())
    assert float(high.grad) == 0.5 * int((x / 0.5 > 1.6).sum())


def test_ties_go_to_even_numbers_and_zero_has_no_sign() -> None:
    found = rounded(torch.tensor([-1.5, -0.5, -0.2, 0.5, 1.5, 2.5]))
    assert found.tolist() == [-2.0, 0.0, 0.0, 0.0, 2.0, 2.0]
    assert not torch.signbit(found[1:4]).any()
    v = torch.tensor(2.4, requires_grad=True)
    rounded(v).backward()
    assert v.grad == 1.0


def test_chance_rounds_to_the_integers_beside(monkeypatch) -> None:
    monkeypatch.setattr(rounding, "PIECE", 1000)
    torch.manual_seed(0)
    x = torch.full((100, 400), -1.3, requires_grad=True)
    ends = torch.tensor(-7.0), torch.tensor(7.0)
    scale = torch.tensor(2.0, requires_grad=True)
    found = quantized(x, scale, *ends, stochastic=True)
    assert set(found.unique().tolist()) == {-2.0, 0.0}
    assert float(found.mean().detach()) == pytest.approx(-1.3, abs=0.02)
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    expected = float(found.detach().sum()) / 2.0 + 1.3 / 2.0 * x.numel()
    assert float(scale.grad) == pytest.approx(expected, rel=1e-3)
