import math

import pytest
import torch

from tvmquant.training.rounding import SHAPES, rounded

DELTA, ALPHA = 0.3, 1.9


def _expected(shape: str, error: float, sign: float) -> float:
    """Write the formulas of the module once more, number by number."""
    factor = {
        "ste": 0.0,
        "pbgs": abs(error),
        "ewgs": sign * error,
        "acos": math.sin(math.pi * error),
        "tanh": sign * math.tanh(ALPHA * error),
        "invtanh": sign * math.atanh(ALPHA * error),
    }[shape]
    return 1.0 + DELTA * factor


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_have_the_published_shapes(shape: str) -> None:
    values = torch.linspace(-2.49, 2.49, 167, dtype=torch.float64)
    for sign in (1.0, -1.0):
        v = values.clone().requires_grad_()
        whole = rounded(v, shape, DELTA, ALPHA)
        whole.backward(torch.full_like(values, 2.0 * sign))
        errors = (values - torch.round(values)).tolist()
        expected = [2.0 * sign * _expected(shape, error, sign) for error in errors]
        assert v.grad is not None
        torch.testing.assert_close(
            v.grad, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7
        )


def test_ties_go_to_even_numbers_and_zero_has_no_sign() -> None:
    found = rounded(torch.tensor([-1.5, -0.5, -0.2, 0.5, 1.5, 2.5]))
    assert found.tolist() == [-2.0, 0.0, 0.0, 0.0, 2.0, 2.0]
    assert not torch.signbit(found[1:4]).any()
