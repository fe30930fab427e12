import pytest

from tvmquant.tuning import budget
from tvmquant.tuning.budget import CONFIRMING_SHARE, RunBudget


@pytest.fixture
def clock(monkeypatch):
    """Let a test say what time it is."""
    now = [100.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    return now


def test_trials_end_a_search():
    limited = RunBudget(trials=10)
    assert limited.trials_left(4) == 6
    assert limited.may_search(9, confirming=0)
    assert not limited.may_search(10, confirming=0)
    assert not limited.over


def test_time_is_kept_for_confirming(clock):
    limited = RunBudget(seconds=100.0)
    clock[0] += 50.0
    for _ in range(50):
        limited.measured()  # one a second
    assert limited.may_search(50, confirming=20)
    clock[0] += 25.0
    # confirming takes no more than its share, however much there is to confirm
    assert not limited.may_search(50, confirming=1000)
    assert limited.may_search(50, confirming=1)
    clock[0] = 100.0 + 100.0 * (1 - CONFIRMING_SHARE) - 1.0
    assert limited.may_search(50, confirming=1000)
    clock[0] = 200.0
    assert limited.over


def test_the_end_is_told_from_the_pace(clock):
    limited = RunBudget(trials=10)
    assert limited.remaining(0, confirming=4) is None
    clock[0] += 6.0
    for _ in range(3):
        limited.measured()
    assert limited.remaining(3, confirming=4) == pytest.approx(2.0 * (7 + 4))
    assert RunBudget(seconds=5.0).remaining(3, confirming=4) == 5.0
    assert RunBudget().remaining(3, confirming=4) is None
