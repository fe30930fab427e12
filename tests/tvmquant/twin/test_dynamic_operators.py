"""Ranges found at run time in torch: the bits of the simulator, and gradients."""

import numpy as np
import pytest
import torch

from tests.tvmquant.twin.graphs import graph
from tvmquant.arithmetic import dynamic_range, quantize_by_range
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.simulator import simulate
from tvmquant.twin import Twin

SHAPE = (2, 3, 5, 4)


def tensor(kind):
    x = 2 * np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    if kind == "zeros":
        return 0 * x
    if kind == "infinite":
        x[0, 0, 0, 0] = -np.inf
    elif kind == "not a number":
        x[0, 0, 0, 0] = np.nan
    return np.abs(x) if kind == "positive" else x


def ranged(*, fixed):
    def body(builder, x):
        return builder.emit(qop.emit(dyn.DYNAMIC_QUANT, [x], {"id": "x", "fixed": fixed}))

    return graph(SHAPE, body)


@pytest.mark.parametrize("kind", ["signed", "positive", "zeros", "infinite", "not a number"])
def test_equal_to_the_simulator(kind):
    """Rounded, in a frame of zero points, and back."""

    def body(builder, x):
        found = builder.emit(qop.emit(dyn.DYNAMIC_RANGE, [x], {"id": "range"}))
        attrs = {"id": "q", "padding": [1, 0, 2, 3], "layout": "NCHW"}
        q = builder.emit(qop.emit(dyn.DYNAMIC_QUANTIZE, [x, found], attrs))
        attrs = {"id": "y", "axis": 1, "layout": "NCHW", "low": -1.0, "high": np.inf}
        numbers = [np.int32([1, -2, 3]), np.float32([0.1, 0.2, 0.3]), np.float32([1.0, 0.3, -0.7])]
        args = [q, found, *map(qop.constant, numbers)]
        return [q, builder.emit(qop.emit(dyn.DYNAMIC_DEQUANTIZE, args, attrs))]

    module, x = graph(SHAPE, body), tensor(kind)
    if kind == "not a number":
        x[0, 0, 0, 0] = 0.0
        expected = simulate(module, x)
        x[0, 0, 0, 0] = np.nan
        found = Twin(module)(torch.from_numpy(x))
        keep = np.ones(expected[0].shape, bool)
        keep[0, 0, 1, 0] = False  # itself
    else:
        expected, found = simulate(module, x), Twin(module)(torch.from_numpy(x))
        keep = np.ones(expected[0].shape, bool)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.numpy()[keep], b[keep])


def test_models_own_ranges_are_applied_in_every_mode():
    x = torch.from_numpy(tensor("signed"))
    assert torch.equal(Twin(ranged(fixed=0))(x), x)
    applied = Twin(ranged(fixed=1))(x)
    assert torch.equal(Twin(ranged(fixed=0), mode="quantized")(x), applied)
    scale, zero_point = dynamic_range(x.numpy())
    q = quantize_by_range(x.numpy(), np.array([scale, zero_point]))
    np.testing.assert_array_equal(applied.numpy(), (q - zero_point) * scale)


def test_gradients_pass_as_if_nothing_was_rounded():
    x = torch.from_numpy(tensor("signed")).requires_grad_()
    result = Twin(ranged(fixed=1))(x)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))
    assert torch.equal(result, Twin(ranged(fixed=1))(x.detach()))
