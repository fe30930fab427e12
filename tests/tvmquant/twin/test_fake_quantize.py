"""The torch fake_quant against the numpy definition, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvmquant.arithmetic import dequantize, quantize_half_even
from tvmquant.twin import fake_quantize_half_even

QUANTIZERS = st.sampled_from(
    [(0, 0, 255), (128, 1, 255), (37, 0, 255), (0, -32767, 32767), (0, -8, 7), (15, 0, 15)]
)


def oracle(x: np.ndarray, scale: np.float32, zero: int, qmin: int, qmax: int) -> np.ndarray:
    q = quantize_half_even(x, float(scale), zero, qmin, qmax, "int32")
    return dequantize(q, scale, zero)


@given(
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=50),
    st.floats(2.0**-60, 2.0**60, width=32),
    QUANTIZERS,
    st.booleans(),
)
def test_equals_arithmetic(
    values: list[float], scale: float, quantizer: tuple[int, int, int], with_gradient: bool
) -> None:
    # Exact ties beside the arbitrary values.
    halves = (np.arange(-6, 6) + 0.5) * np.float32(scale)
    x = np.concatenate([np.asarray(values, np.float32), halves.astype(np.float32)])
    expected = oracle(x, np.float32(scale), *quantizer)
    result = fake_quantize_half_even(
        torch.from_numpy(x).requires_grad_(with_gradient),
        torch.tensor([scale]),
        torch.tensor([quantizer[0]], dtype=torch.int32),
        *quantizer[1:],
    )
    assert result.detach().numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("axis", [0, 1, -2, 3])
def test_per_channel(axis: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (3, 4, 5, 6)).astype(np.float32)
    scales = rng.uniform(0.005, 0.05, x.shape[axis]).astype(np.float32)
    zeros = rng.integers(0, 255, x.shape[axis]).astype(np.int32)
    result = fake_quantize_half_even(
        *(torch.from_numpy(a) for a in (x, scales, zeros)), 0, 255, axis
    ).numpy()
    for channel, (scale, zero) in enumerate(zip(scales, zeros, strict=True)):
        expected = oracle(x.take(channel, axis), scale, int(zero), 0, 255)
        assert result.take(channel, axis).tobytes() == expected.tobytes()


def test_gradients() -> None:
    """1 inside, 0 where clipped; for the scale that of LSQ."""
    x = torch.tensor([-3.0, 0.26, 0.6, 3.0], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    zero_point = torch.tensor([0], dtype=torch.int32)
    fake_quantize_half_even(x, scale, zero_point, -2, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    inside = (1 - 0.26 / 0.5) + (1 - 0.6 / 0.5)
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(-2 + inside + 2, abs=1e-6)
