import math

import numpy as np
from tvm import relax

from tvmquant.formats import INT16, UINT8, Uniform
from tvmquant.passes.accumulator import Accumulator, Quantized, QuantizedWeight, Term


def test_quantized_parameters():
    x = relax.Var("x", relax.TensorType([2], "uint8"))
    q = Quantized(x, 0.1, 10, 0, 255, UINT8)
    assert q.bound == 245
    assert q.same_parameters(Quantized(x, 0.1, 10, 20, 30, UINT8))
    assert not q.same_parameters(Quantized(x, 0.1, 10, 0, 255, INT16))
    assert not q.same_parameters(Quantized(x, 0.1, 11, 0, 255, UINT8))


def test_weights_are_rounded_half_to_even_and_clipped_symmetrically():
    values = np.array([[0.5, 1.5, -20.0], [1.0, -1.0, 3.0]], np.float32)
    weight = QuantizedWeight(values, np.ones(2), Uniform(4, signed=True))
    np.testing.assert_array_equal(
        weight.round(np.array([1.0, 0.5])), [[0, 2, -7], [2, -2, 6]], strict=False
    )


def region():
    return Accumulator((Term(np.array([0.5, 1.0]), np.array([10, 10])),), np.array([1.0, 2.0]))


def test_constants_extend_a_region():
    r = region().scaled(np.array([2.0, -1.0])).shifted(np.array([1.0]))
    np.testing.assert_array_equal(r.terms[0].scale, [1.0, -1.0])
    np.testing.assert_array_equal(r.bias, [3.0, -1.0])
    both = r.plus(region())
    assert len(both.terms) == 2
    np.testing.assert_array_equal(both.bias, [4.0, 1.0])


def test_clips_compose_and_scale():
    r = region().clipped(0.0, math.inf).clipped(-1.0, 6.0)
    assert (r.low, r.high) == (0.0, 6.0)
    assert (r.clipped(7.0, 8.0).low, r.clipped(7.0, 8.0).high) == (7.0, 7.0)
    scaled = r.scaled(np.array([0.5]))
    assert (scaled.low, scaled.high) == (0.0, 3.0)
