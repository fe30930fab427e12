"""Values, slopes and curvatures of the losses against torch."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvmquant.errors import DataError, SensitivityError
from tvmquant.sensitivity.loss import (
    BinaryCrossEntropy,
    CrossEntropy,
    SquaredError,
    check_loss,
    choose_loss,
    random_signs,
)
from tvmquant.sensitivity.structure import SIGMOID, SOFTMAX

LOSSES = [CrossEntropy(), BinaryCrossEntropy(), SquaredError()]
BY_NAME = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
# z of two items, three channels, two positions
VALUES = hnp.arrays(np.float64, (2, 3, 2), elements=st.floats(-6, 6))


@BY_NAME
@given(array=VALUES)
def test_probes_have_the_covariance_of_the_hessian(loss, array):
    """Over all signs, for the first item alone: the sum is exact."""
    z = torch.from_numpy(array)[:1]
    targets = loss.answers(z)
    hessian = torch.autograd.functional.hessian(lambda v: loss.value(v, targets), z)
    signs = torch.tensor(list(itertools.product([-1, 1], repeat=6)), dtype=z.dtype)
    roots = loss.root(z.expand(len(signs), 3, 2), signs.reshape(-1, 3, 2)).flatten(1)
    found = roots.T @ roots / len(signs) / z.shape[2]
    torch.testing.assert_close(found, hessian.reshape(6, 6), rtol=1e-9, atol=1e-12)


@BY_NAME
@given(array=VALUES, other=VALUES)
def test_slope_is_the_derivative_of_an_items_loss(loss, array, other):
    z = torch.from_numpy(array).requires_grad_()
    targets = loss.answers(torch.from_numpy(other))
    (gradient,) = torch.autograd.grad(loss.value(z, targets) * len(z), z)
    torch.testing.assert_close(loss.slope(z, targets), gradient, rtol=1e-9, atol=1e-12)
    assert not loss.slope(z, loss.answers(z)).any()


@given(array=VALUES, other=VALUES)
def test_values_are_those_of_torch(array, other):
    z, t = torch.from_numpy(array), torch.from_numpy(other)
    soft, yes = t.softmax(1), t.sigmoid()
    close = torch.testing.assert_close
    close(CrossEntropy().value(z, soft), F.cross_entropy(z, soft))
    close(BinaryCrossEntropy().value(z, yes), 3 * F.binary_cross_entropy_with_logits(z, yes))
    close(SquaredError().value(z, t), 1.5 * F.mse_loss(z, t))


def test_labels_are_one_hot():
    z = torch.tensor([[[0.5], [2.0], [-1.0]], [[0.0], [1.0], [3.0]]])
    labels = torch.tensor([2, 0])
    value = CrossEntropy().value(z, CrossEntropy().targets(z, labels))
    torch.testing.assert_close(value, F.cross_entropy(z[:, :, 0], labels))


@pytest.mark.parametrize(
    ("end", "link", "loss"),
    [(SOFTMAX, lambda z: z.softmax(1), "cross_entropy"), (SIGMOID, torch.sigmoid, "auto")],
)
def test_what_goes_into_the_last_function_is_recovered(end, link, loss):
    z = torch.linspace(-3, 3, 12).reshape(2, 6)
    output = link(z)
    chosen = choose_loss(loss, end, output)
    found = chosen.values(output)
    torch.testing.assert_close(chosen.answers(found)[:, :, 0], output)
    differences = found[:, 1:, 0] - found[:, :-1, 0]
    torch.testing.assert_close(differences, z[:, 1:] - z[:, :-1])


@BY_NAME
@pytest.mark.parametrize("size", [30.0, 1e4, 1e30])
def test_certain_answers_stay_finite(loss, size):
    z = torch.tensor([[[size], [-size], [0.0]]])
    generator = torch.Generator().manual_seed(0)
    assert loss.probe(z, generator).isfinite().all()
    assert loss.slope(z, loss.answers(z)).isfinite().all()
    assert loss.name == "squared_error" or loss.value(z, loss.answers(z)).isfinite()


@pytest.mark.parametrize("end", [SOFTMAX, SIGMOID])
def test_probabilities_of_zero_and_one_have_finite_gradients(end):
    output = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    loss = choose_loss("auto", end, output)
    z = loss.values(output)
    (gradient,) = torch.autograd.grad(
        (z * loss.probe(z, torch.Generator().manual_seed(0))).sum(), output, create_graph=True
    )
    assert gradient.isfinite().all()
    assert torch.autograd.grad(gradient.sum(), output)[0].isfinite().all()


@pytest.mark.parametrize(
    ("shape", "end", "expected"),
    [
        ((4, 10), "relax.matmul", "cross_entropy"),
        ((4, 10), SOFTMAX, "cross_entropy"),
        ((4, 3, 8, 8), "relax.add", "cross_entropy"),
        ((4, 1), "relax.matmul", "squared_error"),
        ((4,), "relax.reshape", "squared_error"),
        ((4, 1, 8, 8), "relax.add", "squared_error"),
        ((4, 1, 8, 8), SIGMOID, "binary_cross_entropy"),
        ((4, 10), SIGMOID, "binary_cross_entropy"),
    ],
)
def test_choice_by_shape_and_last_operator(shape, end, expected):
    loss = choose_loss("auto", end, torch.zeros(shape))
    assert loss.name == expected
    assert loss.values(torch.full(shape, 0.5)).shape[0] == 4
    assert loss.values(torch.full(shape, 0.5)).ndim == 3


def test_a_given_loss_is_taken():
    output = torch.tensor([[0.2, 0.8]])
    loss = choose_loss("squared_error", SOFTMAX, output)
    assert loss.name == "squared_error"
    torch.testing.assert_close(loss.values(output)[:, :, 0], output)
    with pytest.raises(SensitivityError, match="'mse' is unknown; expected one of auto"):
        check_loss("mse")


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(CrossEntropy(), (2, 3, 4)), (SquaredError(), (2, 1, 1)), (BinaryCrossEntropy(), (2, 3, 1))],
)
def test_labels_of_other_outputs_are_refused(loss, shape):
    with pytest.raises(DataError, match=f"labels do not fit an output with the loss {loss.name}"):
        loss.targets(torch.zeros(shape), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(DataError, match="do not fit a model of 3 classes"):
        CrossEntropy().targets(torch.zeros(1, 3, 1), torch.tensor([label]))


def test_signs():
    signs = random_signs(torch.zeros(1000), torch.Generator().manual_seed(0))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.1
