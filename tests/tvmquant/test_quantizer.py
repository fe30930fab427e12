import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvmquant.errors import QuantizationError
from tvmquant.quantizer import (
    GROUP_LEVELS,
    affine_parameters,
    grouped_weight_scales,
    weight_scales,
)
from tvmquant.run_layout import runs_of

values = st.floats(-(2.0**40), 2.0**40, width=32)


def quantize(x, lo, hi, bits=8, scheme="auto"):
    scale, zero_point, qmin, qmax = affine_parameters(lo, hi, bits=bits, scheme=scheme)
    return (np.clip(np.rint(x / scale) + zero_point, qmin, qmax) - zero_point) * scale


@given(values, values, st.integers(2, 8), st.sampled_from(["symmetric", "asymmetric", "auto"]))
def test_zero_is_exact_and_the_range_is_covered(a, b, bits, scheme):
    lo, hi = min(a, b), max(a, b)
    scale, zero_point, qmin, qmax = affine_parameters(lo, hi, bits=bits, scheme=scheme)
    assert scale > 0
    assert isinstance(zero_point, int)
    assert qmin <= zero_point <= qmax
    assert quantize(np.float64(0.0), lo, hi, bits, scheme) == 0.0
    # Half a step is lost at most: at the ends by nudging the zero point, inside by rounding.
    for end in (lo, hi):
        assert abs(quantize(np.float64(end), lo, hi, bits, scheme) - end) <= scale * (0.5 + 1e-9)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((-1.0, 1.27, 8, "symmetric"), (0.01, 0, -127, 127)),
        ((0.0, 2.55, 8, "auto"), (0.01, 0, 0, 255)),
        ((-1.27, 0.5, 8, "auto"), (0.01, 0, -127, 127)),
        ((-0.5, 2.05, 8, "asymmetric"), (0.01, 50, 0, 255)),
        ((0.5, 2.55, 8, "asymmetric"), (0.01, 0, 0, 255)),
        ((-2.55, -0.5, 8, "asymmetric"), (0.01, 255, 0, 255)),
        # -lo / scale = 2.5: rounded half up
        ((-2.5, 12.5, 4, "asymmetric"), (1.0, 3, 0, 15)),
        ((0.0, 0.0, 8, "auto"), (1.0, 0, 0, 255)),
        ((0.0, 0.0, 8, "symmetric"), (1.0, 0, -127, 127)),
        ((0.0, 0.0, 8, "asymmetric"), (1.0, 0, 0, 255)),
    ],
)
def test_affine_parameters(args, expected):
    lo, hi, bits, scheme = args
    scale, *integers = affine_parameters(lo, hi, bits=bits, scheme=scheme)
    assert scale == pytest.approx(expected[0])
    assert tuple(integers) == expected[1:]


@pytest.mark.parametrize(
    ("lo", "hi", "bits", "scheme", "message"),
    [
        (-1.0, 1.0, 8, "unsigned", "unsigned"),
        (1.0, -1.0, 8, "auto", "lo <= hi"),
        (0.0, np.nan, 8, "auto", "finite"),
        (-np.inf, 0.0, 8, "auto", "finite"),
        (-1.0, 1.0, 1, "symmetric", "bits = 1"),
        (0.0, 1.0, 17, "unsigned", "bits = 17"),
        (0.0, 1.0, 8, "affine", "'affine'"),
    ],
)
def test_affine_parameters_rejects(lo, hi, bits, scheme, message):
    with pytest.raises(QuantizationError, match=message):
        affine_parameters(lo, hi, bits=bits, scheme=scheme)


@settings(max_examples=50)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6),
        elements=st.floats(-1000, 1000, width=32),
    ),
    st.integers(0, 1),
    st.sampled_from([2, 4, 8]),
)
def test_weight_scales_are_positive_and_mse_is_never_worse(w, axis, bits):
    qmax = 2 ** (bits - 1) - 1
    rows = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1).astype(np.float64)
    errors = {}
    for method in ("minmax", "mse"):
        scales = weight_scales(w, axis, bits, method)
        assert scales.shape == (w.shape[axis],)
        assert (scales > 0).all()
        q = np.clip(np.rint(rows / scales[:, None]), -qmax, qmax)
        errors[method] = np.sum((q * scales[:, None] - rows) ** 2, axis=1)
    slack = 1e-5 * np.sum(rows**2, axis=1)
    assert (errors["mse"] <= errors["minmax"] + slack).all()


def test_weight_scales_values():
    w = np.array([[1.27, -0.5], [0.0, 0.0], [-2.54, 1.0]], np.float32)
    np.testing.assert_allclose(weight_scales(w), [0.01, 0.02, 0.02], rtol=1e-6)
    np.testing.assert_allclose(weight_scales(w, None), [0.02], rtol=1e-6)
    np.testing.assert_array_equal(weight_scales(np.zeros((2, 3), np.float32)), [1.0, 1.0])


def test_weight_scales_mse_clips_low_bits():
    w = np.random.default_rng(8).standard_normal((4, 1000)).astype(np.float32)
    ratio = weight_scales(w, 0, 4, "mse") / weight_scales(w, 0, 4)
    assert (ratio < 0.9).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_scales_reject_nonfinite_weights(bad):
    w = np.ones((3, 2), np.float32)
    w[1, 0] = bad
    with pytest.raises(QuantizationError, match="channel 1"):
        weight_scales(w)


class TestGroupedWeightScales:
    @pytest.mark.parametrize(
        ("shape", "axis"), [((5, 6, 3, 3), 0), ((5, 40, 1, 1), 0), ((6, 70), 0), ((70, 6), 1)]
    )
    @pytest.mark.parametrize("group", [32, 64])
    def test_groups_lie_along_rows(self, shape, axis, group):
        w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        scale, multiplier = grouped_weight_scales(w, group, axis)
        assert scale.shape == (w.shape[axis],)
        assert (multiplier.shape, multiplier.dtype) == (w.shape, np.int8)
        rows = runs_of(np.moveaxis(multiplier, axis, 0))
        for start in range(0, rows.shape[2], group):
            block = rows[:, :, start : start + group]
            assert (block == block[:, :, :1]).all()
        assert multiplier.min() >= 1
        assert multiplier.max() == GROUP_LEVELS

    def test_groups_of_different_size_lose_less(self):
        w = np.random.default_rng(1).standard_normal((4, 64, 1, 1)).astype(np.float32)
        w[:, 32:] *= 0.1

        def error(unit):
            return np.square(np.clip(np.rint(w / unit), -7, 7) * unit - w).sum()

        scale, multiplier = grouped_weight_scales(w, 32)
        whole = weight_scales(w, 0, 4, "mse").reshape(-1, 1, 1, 1)
        assert error(scale.reshape(-1, 1, 1, 1) * multiplier) < 0.8 * error(whole)

    def test_zeros(self):
        scale, multiplier = grouped_weight_scales(np.zeros((2, 40), np.float32), 32)
        assert (scale > 0).all()
        assert (multiplier == 1).all()
