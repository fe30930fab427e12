import gc
import json
import time

import numpy as np
import pytest

from tvmquant.benchmark import (
    Latency,
    compare,
    measure,
    measure_interleaved,
    random_inputs,
    runner,
)
from tvmquant.deploy.manifest import TensorInfo
from tvmquant.errors import DataError

IMAGE = TensorInfo("image", [2, 3, 8, 8], raw_shape=[2, 8, 8, 3], raw_dtype="int8")


def test_statistics_are_in_milliseconds():
    latency = Latency(tuple(k / 1000 for k in range(1, 12)))
    assert latency.median_ms == pytest.approx(6.0)
    assert latency.min_ms == pytest.approx(1.0)
    assert latency.p90_ms == pytest.approx(10.0)
    assert json.loads(json.dumps(latency.to_dict()))["repeats"] == 11


def test_every_round_calls_each_function_once_in_rotating_order():
    calls = []
    runners = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = measure_interleaved(runners, repeats=3, warmup=1)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 12, 3)]
    assert rounds == ["abc", "bca", "cab", "abc"]
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 3)


def test_what_is_timed_is_the_function():
    latencies = compare({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, repeats=3)
    assert latencies["slow"].min_ms >= 20.0 > latencies["fast"].min_ms


def test_the_garbage_collector_is_off_meanwhile_and_on_again_after_an_error():
    states = []

    def fail():
        states.append(gc.isenabled())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        measure_interleaved({"x": fail}, repeats=1)
    assert states == [False]
    assert gc.isenabled()


@pytest.mark.parametrize("arguments", [{"repeats": 0}, {"warmup": -1}])
def test_numbers_of_runs_are_checked(arguments):
    with pytest.raises(DataError, match="expected at least 1 repeat"):
        measure_interleaved({"x": lambda: None}, **arguments)


def test_progress_counts_all_rounds():
    seen = []
    measure_interleaved(
        {"x": lambda: None}, repeats=2, warmup=1, progress=lambda d, t: seen.append((d, t))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_random_inputs_are_reproducible_and_fit():
    first, second = random_inputs([IMAGE]), random_inputs([IMAGE])
    np.testing.assert_array_equal(first[0], second[0])
    assert first[0].shape == (2, 3, 8, 8)
    assert first[0].dtype == np.float32


def test_raw_inputs_cover_their_type():
    (raw,) = random_inputs([IMAGE], raw=True)
    assert raw.shape == (2, 8, 8, 3)
    assert raw.dtype == np.int8
    assert raw.min() < -100
    assert raw.max() > 100


def test_a_model_is_bound_once():
    class Model:
        def __init__(self):
            self.bound = 0
            self.runs = 0

        def bind(self, *inputs):
            self.bound += 1
            return self.run

        def run(self):
            self.runs += 1

    model = Model()
    measure(model, [np.zeros(1)], repeats=3, warmup=2)
    assert (model.bound, model.runs) == (1, 5)


def test_a_plain_function_gets_the_inputs():
    assert runner(lambda x, y: x + y, [np.array(1), np.array(2)])() == 3


def test_a_library_is_measured(small_library):
    import tvmquant

    model = tvmquant.load(small_library)
    latency = tvmquant.measure(model, random_inputs(model.inputs), repeats=5)
    assert len(latency.seconds) == 5
    assert latency.min_ms > 0
