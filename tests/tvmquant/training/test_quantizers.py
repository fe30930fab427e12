import numpy as np
import pytest
import torch

from tvmquant.training.quantizers import MOST_CHANGE, TrainedQuantizer
from tvmquant.training.sections import Quantizer
from tvmquant.twin import FakeQuantize


def _given(scale=(0.5,), zero_point=0, qmin=0, qmax=15, axis=-1) -> FakeQuantize:
    zero = torch.tensor([zero_point], dtype=torch.int32)
    return FakeQuantize(torch.tensor(scale), zero, qmin, qmax, axis=axis)


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 6.0


@pytest.mark.parametrize("step", ["learned", "clip", "fixed"])
@pytest.mark.parametrize(
    ("given", "shape"),
    [
        (_given(), (4, 3, 5, 5)),
        (_given(zero_point=3), (4, 3, 5, 5)),
        (_given(scale=(0.2, 0.5, 1.0), qmin=-7, qmax=7, axis=0), (3, 2, 3, 3)),
    ],
)
def test_a_trained_quantizer_rounds_as_the_given_one(step, given, shape) -> None:
    trained = TrainedQuantizer(given, Quantizer(step=step), per_item=given.axis < 0)
    x = _x(*shape)
    assert torch.equal(trained(x), given(x))
    assert trained.scale.requires_grad == (step != "fixed")


def test_a_learned_step_has_the_gradient_of_lsq() -> None:
    trained = TrainedQuantizer(_given(zero_point=4), Quantizer(), per_item=True)
    x, upstream = _x(4, 30), _x(4, 30)
    trained(x).backward(upstream)
    v = x / 0.5
    inside = torch.round(v) - v
    each = torch.where(v <= -4, -4.0, torch.where(v >= 11, 11.0, inside))
    expected = (upstream * each).sum() / (30 * 15) ** 0.5
    torch.testing.assert_close(trained.scale.grad, expected[None])


def test_a_learned_clip_has_the_gradient_of_pact() -> None:
    trained = TrainedQuantizer(_given(), Quantizer(step="clip"), per_item=True)
    x = _x(4, 30).requires_grad_()
    trained(x).sum().backward()
    above = (x >= 7.5).sum()
    torch.testing.assert_close(trained.scale.grad, 15.0 * above[None] / (30 * 15) ** 0.5)
    assert x.grad is not None
    assert torch.equal(x.grad != 0, (x >= 0) & (x <= 7.5))


def test_chance_rounds_while_training_only() -> None:
    torch.manual_seed(0)
    rule = Quantizer(step="fixed", stochastic=True)
    trained = TrainedQuantizer(_given(scale=(1.0,)), rule, per_item=True)
    x = torch.full((40_000,), 3.25, requires_grad=True)
    found = trained(x)
    assert set(found.tolist()) == {3.0, 4.0}
    assert float(found.mean().detach()) == pytest.approx(3.25, abs=0.01)
    with torch.no_grad():
        assert set(trained(x).tolist()) == {3.0}


def test_a_share_is_quantized_while_training_only() -> None:
    torch.manual_seed(0)
    trained = TrainedQuantizer(_given(), Quantizer(step="fixed", share=0.25), per_item=True)
    x = torch.full((40_000,), 0.3, requires_grad=True)
    found = trained(x)
    assert float((found == 0.5).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert bool(((found == 0.5) | (found == 0.3)).all())
    with torch.no_grad():
        assert bool((trained(x) == 0.5).all())


def test_what_goes_on_is_blended_while_training_only() -> None:
    trained = TrainedQuantizer(_given(), Quantizer(), per_item=True)
    x, upstream = _x(4, 30).requires_grad_(), _x(4, 30)
    whole = np.clip(np.round(x.detach().numpy() / 0.5), 0, 15) * 0.5
    for k in (0.0, 0.3, 1.0):
        trained.blend, x.grad = k, None
        found = trained(x)
        expected = (1 - k) * x.detach().numpy() + k * whole
        np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-6)
        found.backward(upstream)
        inside = ((x >= 0) & (x <= 7.5)).detach().numpy()
        expected = upstream.numpy() * (1 - k + k * inside)
        np.testing.assert_allclose(x.grad, expected, rtol=0, atol=1e-6)
        with torch.no_grad():
            np.testing.assert_array_equal(trained(x), whole)


def test_steps_stay_near_the_calibrated_ones() -> None:
    trained = TrainedQuantizer(_given(scale=(1.0, 1.0, 1.0)), Quantizer(), per_item=False)
    with torch.no_grad():
        trained.scale.copy_(torch.tensor([-1.0, 2.0, 100.0]))
    trained.keep_near()
    assert trained.scale.tolist() == [1 / MOST_CHANGE, 2.0, MOST_CHANGE]


def test_steps_of_an_activation_keep_their_ratios() -> None:
    trained = TrainedQuantizer(_given(scale=(1.0, 2.0)), Quantizer(), per_item=True)
    with torch.no_grad():
        trained.scale.copy_(torch.tensor([1.5, 2.0]))
    trained.keep_near()
    assert trained.scale.tolist() == [1.25, 2.5]
