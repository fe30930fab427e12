import math

import numpy as np
import pytest

from tests.tvmquant.tuning.kernels import conv, haswell, record
from tvmquant.tuning.database import Database
from tvmquant.tuning.task import CONFIRMATIONS, FIRST_RATE, LEAST_RATE, MOST_CONFIRMATIONS, Task

WORKLOAD = conv()


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path, haswell(), cpu="a processor")


@pytest.fixture
def measure(database):
    """Return a function that adds measurements of a tiling by its number."""
    tilings = list(WORKLOAD.tilings(haswell()).values())

    def add(number, *seconds):
        for value in seconds:
            item = record(WORKLOAD, tilings[number], value, default=number == 0)
            database.append(item)

    return add


@pytest.fixture
def task(database):
    return lambda: Task(database, WORKLOAD, 2, np.random.default_rng(0))


def test_it_begins_with_what_the_database_says(task, measure):
    assert task().default is None
    measure(0, 4e-3)
    measure(1, 2e-3)
    measure(2, None)
    found = task()
    assert found.seconds == {0: 4e-3, 1: 2e-3, 2: math.inf}
    assert (found.default, found.best, found.gain) == (4e-3, 2e-3, 2 * 2e-3)
    assert [index for index, _ in found.ratios()] == [0, 1]


def test_a_measurement_is_seen_after_a_refresh(task, measure):
    found = task()
    measure(3, 1e-3)
    assert found.best == math.inf
    found.refresh(3)
    assert found.best == 1e-3


def test_the_fastest_and_the_default_are_confirmed(task, measure):
    measure(0, 4e-3)
    measure(1, 2e-3)
    assert task().unconfirmed() == [0, 1]
    measure(0, *[4e-3] * (CONFIRMATIONS - 1))
    measure(1, *[2e-3] * (CONFIRMATIONS - 1))
    assert task().unconfirmed() == []


def test_measurements_that_do_not_agree_are_repeated(task, measure):
    measure(0, *[4e-3] * CONFIRMATIONS)
    measure(1, 1e-3, *[2e-3] * (CONFIRMATIONS - 1))
    assert task().unconfirmed() == [1]
    assert not task().settled
    measure(1, *[2e-3] * (MOST_CONFIRMATIONS - CONFIRMATIONS))
    assert task().unconfirmed() == []


def test_the_rate_follows_what_batches_improve(task, measure):
    measure(0, 4e-3)
    found = task()
    assert found.expected_gain() == pytest.approx(2 * 4e-3 * FIRST_RATE)
    found.update_rate(8e-3)
    assert found.rate == pytest.approx(0.5 * FIRST_RATE + 0.5 * 0.5)
    for _ in range(20):
        found.update_rate(found.best)
    assert found.rate == LEAST_RATE
