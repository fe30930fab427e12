"""The derivatives of signs are those of the papers."""

import math

import numpy as np
import pytest
import torch

from tvmquant.errors import QuantizationError
from tvmquant.nn import GRADIENTS, RPReLU, RSign, binarize_weight, sign, ternarize_weight

POINTS = [-30.0, -1.5, -1.0, -0.999, -0.5, -0.1, 0.0, 0.1, 0.3, 0.7, 1.0, 1.001, 2.0, 30.0]


def indicator(x):
    return float(abs(x) <= 1.0)


def triangle(x):
    """Liu et al. (2018), of the polynomial that is a sign but between -1 and 1."""
    return 2.0 + 2.0 * x if -1.0 <= x < 0.0 else 2.0 - 2.0 * x if 0.0 <= x < 1.0 else 0.0


def swish(x, beta=5.0):
    """Darabi et al. (2018)."""
    return beta * (2.0 - beta * x * math.tanh(beta * x / 2.0)) / (1.0 + math.cosh(beta * x))


ACTIVATIONS = {
    "ste": indicator,
    "xnor": indicator,
    "bireal": triangle,
    "reactnet": triangle,
    "bnn+": swish,
}
# of a weight w with magnitude a, which n weights have
WEIGHTS = {
    "ste": lambda w, a, n: indicator(w),
    "xnor": lambda w, a, n: 1.0 / n + a * indicator(w),
    "bireal": lambda w, a, n: a * float(abs(w) < 1.0),
    "reactnet": lambda w, a, n: indicator(w),
    "bnn+": lambda w, a, n: a * swish(w),
}


def gradient_of(function, values, upstream):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y = function(x)
    y.backward(torch.as_tensor(upstream, dtype=torch.float64).reshape(y.shape))
    return y.detach().numpy(), x.grad.numpy()


def test_every_gradient_is_here():
    assert set(ACTIVATIONS) == set(WEIGHTS) == set(GRADIENTS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    upstream = np.linspace(-2.0, 3.0, len(POINTS))
    y, gradient = gradient_of(lambda x: sign(x, name), POINTS, upstream)
    np.testing.assert_array_equal(y, [1.0 if x >= 0.0 else -1.0 for x in POINTS])
    expected = upstream * [ACTIVATIONS[name](x) for x in POINTS]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name, scaled):
    weight = np.array(POINTS).reshape(2, 7, 1, 1)
    upstream = np.linspace(-2.0, 3.0, weight.size).reshape(weight.shape)
    y, gradient = gradient_of(lambda w: binarize_weight(w, name, scale=scaled), weight, upstream)
    magnitude = np.abs(weight).mean((1, 2, 3)) if scaled else np.ones(2)
    for o in range(2):
        for i in range(7):
            w = weight[o, i, 0, 0]
            assert y[o, i, 0, 0] == pytest.approx(magnitude[o] * (1.0 if w >= 0.0 else -1.0))
            expected = upstream[o, i, 0, 0] * WEIGHTS[name](w, magnitude[o], 7)
            assert gradient[o, i, 0, 0] == pytest.approx(expected, rel=0, abs=1e-7)


def test_swish_is_the_derivative_of_swish_sign():
    x = torch.linspace(-3, 3, 31, dtype=torch.float64, requires_grad=True)
    s = torch.sigmoid(5.0 * x)
    (2.0 * s * (1.0 + 5.0 * x * (1.0 - s)) - 1.0).sum().backward()
    found = GRADIENTS["bnn+"].activation(x.detach())
    np.testing.assert_allclose(found, x.grad, rtol=0, atol=1e-12)


def test_swish_of_large_numbers_is_zero():
    assert GRADIENTS["bnn+"].activation(torch.tensor([-1e4, 1e4])).tolist() == [0.0, 0.0]


def test_ternary_weights():
    weight = [[0.1, -1.0, 0.5, -0.2], [0.0, 0.0, 0.0, 0.0], [2.0, 2.0, -2.0, 2.0]]
    upstream = np.arange(12.0).reshape(3, 4)
    y, gradient = gradient_of(ternarize_weight, weight, upstream)
    # of the first, 0.7 mean |w| = 0.315 and the mean of what is above 0.75
    expected = [[0.0, -0.75, 0.75, 0.0], [0.0] * 4, [2.0, 2.0, -2.0, 2.0]]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(gradient, upstream)


def test_rsign_learns_its_thresholds():
    layer = RSign(2)
    with torch.no_grad():
        layer.threshold[:, 0, 0] = torch.tensor([0.5, -0.25])
    x = torch.tensor([0.5, 0.25, -0.25, -0.5]).reshape(1, 1, 2, 2).repeat(1, 2, 1, 1)
    y = layer(x)
    assert y.flatten().tolist() == [1, -1, -1, -1, 1, 1, 1, -1]
    y.sum().backward()
    slopes = [sum(triangle(v - a) for v in (0.5, 0.25, -0.25, -0.5)) for a in (0.5, -0.25)]
    np.testing.assert_allclose(layer.threshold.grad.flatten(), [-s for s in slopes], atol=1e-6)


def test_rprelu_is_two_lines_that_meet_in_a_point():
    layer = RPReLU(2)
    with torch.no_grad():
        layer.gamma[1], layer.zeta[1], layer.beta[1] = 1.0, 10.0, 0.5
    x = torch.tensor([-2.0, 3.0]).reshape(1, 1, 1, 2).repeat(1, 2, 1, 1).requires_grad_()
    y = layer(x)
    assert y.flatten().tolist() == [-0.5, 3.0, 8.5, 12.0]
    y.sum().backward()
    assert x.grad.flatten().tolist() == [0.25, 1.0, 0.5, 1.0]
    assert layer.beta.grad.tolist() == [-2.0, -3.0]
    assert layer.gamma.grad.flatten().tolist() == [-1.25, -1.5]
    assert layer.zeta.grad.flatten().tolist() == [2.0, 2.0]


@pytest.mark.parametrize("function", [sign, binarize_weight])
def test_an_unknown_gradient(function):
    with pytest.raises(
        QuantizationError, match="unknown gradient 'relu' of a sign; expected one of s"
    ):
        function(torch.zeros(2, 3), "relu")
