import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvmquant.calibration.histogram import HistogramObserver
from tvmquant.calibration.observers import make_observer
from tvmquant.calibration.threshold import MSEObserver
from tvmquant.errors import DataError, QuantizationError
from tvmquant.quantizer import affine_parameters

METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")
HISTOGRAM_METHODS = ("percentile", "entropy", "mse")

# Without values so small that scaling to bins underflows.
values = st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda x: x == 0 or abs(x) > 1e-20)
arrays = hnp.arrays(np.float32, st.integers(1, 200), elements=values)


def observed(method, data, batches=1, **options):
    observer = make_observer(method, **options)
    for batch in np.array_split(data, batches):
        observer.update(batch)
    return observer


def quantize(x, lo, hi, bits=8, scheme="auto"):
    scale, zero_point, qmin, qmax = affine_parameters(lo, hi, bits=bits, scheme=scheme)
    return (np.clip(np.rint(x / scale) + zero_point, qmin, qmax) - zero_point) * scale


@given(arrays)
def test_percentile_100_equals_minmax(data):
    assert (
        observed("percentile", data, percentile=100.0).range()
        == observed("minmax", data).range()
        == (data.min(), data.max())
    )


@given(arrays, st.integers(1, 8), st.sampled_from(HISTOGRAM_METHODS))
def test_histogram_does_not_depend_on_the_split_into_batches(data, batches, method):
    whole, split = observed(method, data), observed(method, data, batches)
    np.testing.assert_array_equal(split.counts, whole.counts)
    assert (split.exponent, split.zeros, split.count) == (whole.exponent, whole.zeros, whole.count)
    assert split.range() == whole.range()


@given(st.lists(arrays, min_size=1, max_size=5))
def test_merging_bins_keeps_the_counts(batches):
    observer = make_observer("percentile")
    seen = 0
    for scale, batch in enumerate(batches):
        observer.update(batch * np.float32(2.0 ** (7 * scale)))
        seen += batch.size
        assert observer.counts.sum() + observer.zeros == observer.count == seen


@given(arrays)
def test_every_value_lies_in_its_bin(data):
    observer = observed("mse", data)
    expected = np.zeros_like(observer.counts)
    index = np.floor(data[data != 0].astype(np.float64) / observer.width).astype(int)
    np.add.at(expected, index + observer.bins, 1)
    np.testing.assert_array_equal(observer.counts, expected)


@given(arrays.filter(lambda data: np.abs(data).max() > 1e-20))
def test_the_widest_side_uses_at_least_half_of_the_bins(data):
    observer = observed("mse", data)
    assert np.abs(data).max() >= observer.bins / 2 * observer.width


@given(arrays, st.sampled_from([2, 4, 8]))
def test_mse_threshold_is_never_worse_than_minmax_on_its_histogram(data, bits):
    observer = observed("mse", data, bits=bits)
    lo, hi = observer.range()
    if max(-lo, hi) == 0.0:
        assert not data.any()
        return
    chosen, full = observer.expected_error(
        np.array([max(-lo, hi), np.abs(data).max().astype(np.float64)])
    )
    assert chosen <= full * (1 + 1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0, 1e-38, 3e38, -3e38])
def test_constant_data_give_a_valid_quantizer(method, value):
    lo, hi = observed(method, np.full(10, value, np.float32), 2).range()
    assert lo <= hi
    scale, *_ = affine_parameters(lo, hi)
    assert 0 < scale < np.inf
    if abs(value) > 1e-30:
        assert quantize(value, lo, hi) == pytest.approx(value, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_bad_input(method):
    observer = make_observer(method)
    observer.update(np.empty((0, 3), np.float32))
    with pytest.raises(DataError, match="no data"):
        observer.range()
    observer.update(np.array([[1.0, -2.0]], np.float32))
    before = observer.range()
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match="NaN or Inf"):
            observer.update(np.array([0.0, bad, 50.0], np.float32))
    observer.update(np.empty(0, np.float32))
    assert observer.range() == before
    assert observer.count == 2


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("kl", {}, "minmax, moving_average"),
        ("minmax", {"percentile": 99.0}, "no option percentile"),
        ("percentile", {"percentile": 101.0}, "percentile = 101"),
        ("moving_average", {"momentum": 1.0}, "momentum"),
        ("entropy", {"bits": 1}, "bits = 1"),
        ("mse", {"bins": 10}, "bins = 10"),
    ],
)
def test_make_observer_rejects(method, options, message):
    with pytest.raises(QuantizationError, match=message):
        make_observer(method, **options)


def test_moving_average():
    observer = make_observer("moving_average", momentum=0.75)
    observer.update(np.array([-1.0, 4.0], np.float32))
    observer.update(np.array([-5.0, 0.0], np.float32))
    assert observer.range() == (-2.0, 3.0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_is_exact_to_one_bin_in_both_tails(percentile):
    data = np.random.default_rng(2).gamma(2.0, size=200_000).astype(np.float32) - 1
    observer = observed("percentile", data, 7, percentile=percentile)
    expected = np.percentile(data, [100 - percentile, percentile])
    np.testing.assert_allclose(observer.range(), expected, atol=observer.width)


@pytest.mark.parametrize("method", HISTOGRAM_METHODS)
def test_zeros_of_a_relu_do_not_move_the_range(method):
    rng = np.random.default_rng(3)
    positive = np.abs(rng.standard_normal(50_000)).astype(np.float32)
    sparse = np.concatenate([positive, np.zeros(20_000_000 // 8, np.float32)])
    lo, hi = observed(method, sparse).range()
    assert lo == 0.0
    assert hi == pytest.approx(observed(method, positive).range()[1], rel=1e-6)
    assert hi > np.percentile(positive, 99)


@pytest.mark.parametrize("method", HISTOGRAM_METHODS)
def test_an_outlier_is_clipped(method):
    data = np.random.default_rng(4).laplace(size=100_000).astype(np.float32)
    data[0] = 200.0
    lo, hi = observed(method, data).range()
    assert hi < 0.8 * 200.0
    assert lo < -3.0


def test_entropy_clips_an_outlier_behind_a_wide_gap():
    data = np.random.default_rng(4).laplace(size=100_000).astype(np.float32)
    data[0] = 400.0
    assert 5.0 < observed("entropy", data).range()[1] < 40.0


def test_entropy_equals_the_definition_written_with_loops():
    rng = np.random.default_rng(5)
    data = rng.laplace(size=3000).astype(np.float32)
    observer = observed("entropy", data, bits=4, bins=256)
    counts = observer.counts[observer.bins :] + observer.counts[: observer.bins][::-1]
    counts = np.trim_zeros(counts, "b").astype(np.float64)
    levels = 7
    divergences = {}
    for t in range(levels, len(counts) + 1):
        p = counts[:t].copy()
        p[-1] += counts[t:].sum()
        q = np.zeros(t)
        for step in range(levels):
            bins = np.arange(step * t // levels, (step + 1) * t // levels)
            filled = bins[p[bins] > 0]
            if len(filled):
                q[filled] = counts[bins].sum() / len(filled)
        if p[-1] > 0 and q[-1] == 0:
            q[-1] = 1
        p, q = p / p.sum(), q / q.sum()
        divergences[t] = np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))
    best = min(divergences, key=lambda t: divergences[t])
    assert best < len(counts)
    assert observer.range() == (-best * observer.width, best * observer.width)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric", "auto"])
def test_entropy_clips_no_more_than_costs_little(bits, scheme):
    rng = np.random.default_rng(8)
    for data in (rng.laplace(size=20_000), np.maximum(rng.normal(size=20_000), -0.2)):
        x = data.astype(np.float32)
        found = observed("entropy", x, bits=bits, scheme=scheme)
        best = observed("mse", x, bits=bits, scheme=scheme)
        errors = [
            float(np.mean((quantize(x, *o.range(), bits=bits, scheme=scheme) - x) ** 2))
            for o in (found, best)
        ]
        assert errors[0] <= 4.2 * errors[1]
        assert errors[0] <= 0.7 * float(np.mean(x**2))


def test_entropy_of_skewed_data_counts_the_steps_that_an_asymmetric_quantizer_has():
    positive = np.abs(np.random.default_rng(9).normal(size=50_000)).astype(np.float32)
    x = np.append(positive, np.float32(-0.05))
    asymmetric = observed("entropy", x, bits=5, scheme="asymmetric").range()[1]
    unsigned = observed("entropy", positive, bits=5).range()[1]
    signed = observed("entropy", x, bits=5, scheme="symmetric").range()[1]
    assert abs(asymmetric - unsigned) < 0.5 * abs(signed - unsigned)


def test_expected_error_is_the_error_of_values_spread_over_the_bins():
    data = np.random.default_rng(6).standard_normal(2000).astype(np.float32)
    observer = observed("mse", data, bits=4, bins=256)
    assert isinstance(observer, MSEObserver)
    occupied = np.flatnonzero(observer.counts)
    inside = (np.arange(2000) + 0.5) / 2000
    points = (occupied[:, None] - observer.bins + inside) * observer.width
    for threshold in (0.3, 1.0, 2.5):
        errors = (quantize(points, -threshold, threshold, bits=4) - points) ** 2
        expected = observer.counts[occupied] @ errors.mean(axis=1) / data.size
        actual = observer.expected_error(np.array([threshold]))[0]
        assert actual == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_threshold_is_close_to_the_best_of_a_fine_search(bits):
    data = np.random.default_rng(7).laplace(size=100_000).astype(np.float32)
    lo, hi = observed("mse", data, bits=bits).range()
    found = np.mean((quantize(data, lo, hi, bits) - data) ** 2)
    best = min(
        np.mean((quantize(data, -t, t, bits) - data) ** 2)
        for t in np.abs(data).max() * np.linspace(0.02, 1, 200)
    )
    assert found <= best * 1.01


def test_memory_is_fixed():
    observer = make_observer("entropy")
    assert isinstance(observer, HistogramObserver)
    size = observer.counts.nbytes
    for exponent in range(-100, 100, 20):
        observer.update(np.full(70_000, 2.0**exponent, np.float32))
    assert observer.counts.nbytes == size
    assert observer.counts.sum() == observer.count == 700_000


def test_mse_clips_only_where_that_gains_enough():
    data = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    low, high = data.min(), data.max()
    for gain, clips in ((0.0, True), (0.2, False)):
        observer = make_observer("mse", least_gain=gain)
        observer.update(data)
        assert (observer.range() != (low, high)) == clips
    outlier = make_observer("mse", bits=4, least_gain=0.2)
    outlier.update(np.append(data, np.float32(20.0)))
    assert outlier.range()[1] < 10.0
    with pytest.raises(QuantizationError, match="least_gain = 1"):
        make_observer("mse", least_gain=1.0)
