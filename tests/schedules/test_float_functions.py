"""Exponentials as arithmetic, against double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tvm import te, tirx

from tests.schedules.kernel_testing import make_target, run
from tvmquant.schedules.float_functions import exp_below_zero, expand_functions

TARGET = make_target("haswell")
FUNCTIONS = {
    "exp": (tirx.exp, np.exp),
    "sigmoid": (tirx.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (tirx.tanh, np.tanh),
    "erf": (tirx.erf, np.vectorize(math.erf)),
}


def computed(name: str, x: np.ndarray) -> np.ndarray:
    source = te.placeholder(x.shape, "float32", name="x")
    out = te.compute(x.shape, lambda *i: FUNCTIONS[name][0](source(*i)), name="out")
    function = expand_functions(te.create_prim_func([source, out]))
    assert f"T.{name}(" not in function.script()
    return run(function, TARGET, [x])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_is_within_four_units_in_the_last_place(name: str) -> None:
    rng = np.random.default_rng(0)
    magnitudes = np.exp(rng.uniform(-12, 4.4, 4000))
    x = (magnitudes * rng.choice([-1, 1], 4000)).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = FUNCTIONS[name][1](x.astype(np.float64))
    unit = np.maximum(np.abs(expected), 1.0 if name == "erf" else 2.0**-126) * 2.0**-23
    assert np.max(np.abs(computed(name, x) - expected) / unit) <= 4


def test_exp_below_zero() -> None:
    x = -np.exp(np.random.default_rng(0).uniform(-12, 4.4, 4000)).astype(np.float32)
    x = np.concatenate((x, np.array([0, -87.3, -1e9, -np.inf], np.float32)))
    source = te.placeholder(x.shape, "float32", name="x")
    out = te.compute(x.shape, lambda i: exp_below_zero(source(i)), name="out")
    found = run(te.create_prim_func([source, out]), TARGET, [x])
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=5e-7, atol=1.3e-38)


def test_exp_at_its_ends() -> None:
    x = np.array([-np.inf, -150, -104, -87.5, 0, 88.5, 88.7, 89, np.inf], np.float32)
    with np.errstate(over="ignore"):
        expected = np.exp(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(computed("exp", x), expected, rtol=4e-7, atol=3e-45)
