"""The tuner's rounds and budgets, with stand-ins that cost no time."""

import numpy as np
import pytest

from tests.tvmquant.tuning.kernels import (
    StandInBuilder,
    StandInRunner,
    conv,
    depthwise,
    haswell,
    record,
    synthetic_seconds,
)
from tvmquant.errors import TuningError
from tvmquant.tuning.database import Database
from tvmquant.tuning.task import CONFIRMATIONS, MOST_CONFIRMATIONS
from tvmquant.tuning.tuner import Tuner, count
from tvmquant.tuning.workload import canonical_json

WORKLOADS = (conv(64, 64), conv(32, 48), depthwise())


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path, haswell(), cpu="a stand-in")


def tune(database, workloads=WORKLOADS, *, builder=None, progress=None, run=None, **options):
    """Run a tuner; return what it did, its runner and its builder."""
    builder = builder or StandInBuilder()
    runner = StandInRunner(builder, **options)
    tuner = Tuner(database, count(workloads), builder=builder, runner=runner, progress=progress)
    try:
        return tuner.run(**(run or {"trials": 60})), runner, builder
    finally:
        assert builder.closed
        assert runner.closed


def test_equal_layers_are_tuned_once(database):
    workloads = [conv(), conv(input_zero_point=3), conv(), depthwise()]
    assert count(workloads) == {conv(): 3, depthwise(): 1}
    done, runner, _ = tune(database, workloads, run={"trials": 2})
    assert done.trials == 2
    defaults = {w: synthetic_seconds(w, c.tiling) for c in runner.measured for w in [c.workload]}
    assert done.default_ms == pytest.approx(1e3 * (3 * defaults[conv()] + defaults[depthwise()]))


def test_it_ends_faster_than_it_began(database):
    done, _, _ = tune(database, run={"trials": 150})
    optimum = sum(
        min(synthetic_seconds(w, t) for t in w.tilings(haswell()).values()) for w in WORKLOADS
    )
    assert 1e3 * optimum <= done.best_ms < done.default_ms
    assert done.best_ms < 1.03e3 * optimum
    assert (done.trials, done.failed, done.interrupted) == (150, 0, False)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_it_never_ends_slower_than_the_default(database, noise):
    """Also where measurements are noise: the default and the fastest are measured again."""
    tune(database, noise=noise, run={"trials": 40})
    for workload in WORKLOADS:
        best, default = database.best(workload.key), database.default(workload.key)
        assert best.seconds <= default.seconds
        assert min(best.trials, default.trials) >= CONFIRMATIONS


@pytest.mark.parametrize(("noise", "settled"), [(0.0, True), (3.0, False)])
def test_measurements_that_do_not_agree_are_repeated_and_told(database, noise, settled):
    """Whole measurements are disturbed, not only some of their repeats."""
    rng = np.random.default_rng(0)

    def seconds(workload, tiling):
        return synthetic_seconds(workload, tiling) * (1 + rng.exponential(noise))

    done, _, _ = tune(database, seconds=seconds if noise else synthetic_seconds)
    assert (done.unsettled == 0) == settled
    most = max(database.best(w.key).trials for w in WORKLOADS)
    assert (most == CONFIRMATIONS) == settled
    assert most <= MOST_CONFIRMATIONS


def test_the_default_is_the_first_that_is_measured(database):
    _, runner, _ = tune(database)
    for candidate, workload in zip(runner.measured, WORKLOADS, strict=False):
        assert candidate.workload == workload
        assert candidate.tiling == next(iter(workload.tilings(haswell()).values()))


def test_a_budget_of_trials_counts_candidates_and_the_defaults_are_always_measured(database):
    done, _, _ = tune(database, run={"trials": 1})
    assert done.trials == len(WORKLOADS)
    assert all(database.default(workload.key) for workload in WORKLOADS)


def test_a_budget_of_time_ends_the_run(database):
    done, _, _ = tune(database, run={"seconds": 1.0})
    assert done.trials > 3


def test_a_second_run_continues_and_measures_nothing_twice_but_to_confirm(database, tmp_path):
    first, _, _ = tune(database)
    again = Database(tmp_path, haswell(), cpu="a stand-in")
    second, runner, _ = tune(again)
    assert second.best_ms <= first.best_ms
    known = {(r.key, canonical_json(r.tiling)) for r in database.records()}
    searched = runner.measured[: second.trials]
    assert not known & {(c.workload.key, canonical_json(c.tiling)) for c in searched}


def test_what_costs_most_gets_most_trials(database):
    heavy, light = conv(64, 64), conv(16, 16)
    tune(database, [heavy] * 20 + [light], run={"trials": 80})
    assert len(database.timings(heavy.key)) >= len(database.timings(light.key))
    assert len(database.timings(light.key)) >= 1


def test_candidates_that_fail_cost_themselves_only(database):
    broken = [canonical_json(t) for t in list(WORKLOADS[0].tilings(haswell()).values())[1::2]]
    done, _, _ = tune(database, WORKLOADS[:1], builder=StandInBuilder(broken))
    failures = [r for r in database.records() if r.error is not None]
    assert done.failed == len(failures) > 0
    assert {r.error for r in failures} == {"no such instruction"}
    # none is tried twice
    assert len({canonical_json(r.tiling) for r in failures}) == len(failures)
    assert canonical_json(database.best(WORKLOADS[0].key).tiling) not in broken


def test_a_default_that_fails_leaves_the_others(database, caplog):
    broken = [next(iter(WORKLOADS[0].tilings(haswell())))]
    done, _, _ = tune(database, builder=StandInBuilder(broken), run={"trials": 20})
    assert done.best_ms > 0
    assert "no such instruction" in caplog.text
    assert database.best(WORKLOADS[0].key) is None


def test_nothing_that_can_be_measured_is_an_error(database):
    broken = [next(iter(workload.tilings(haswell()))) for workload in WORKLOADS]
    with pytest.raises(TuningError, match=r"none of the 3 kernels.*no such instruction"):
        tune(database, builder=StandInBuilder(broken))


@pytest.mark.parametrize("after", [0, 2, 30])
def test_an_interrupt_keeps_what_is_measured(database, tmp_path, after):
    done, runner, _ = tune(database, interrupt_after=after)
    assert done.interrupted
    assert done.trials == len(runner.measured) == after
    assert len(Database(tmp_path, haswell(), cpu="a stand-in")) == after


def test_a_lost_farm_ends_the_run_and_keeps_what_is_measured(database, tmp_path):
    def lost(_workload, _tiling):
        if len(database) == 5:
            raise TuningError("the tracker holds no device")
        return 1e-3

    with pytest.raises(TuningError, match="holds no device"):
        tune(database, seconds=lost)
    assert len(Database(tmp_path, haswell(), cpu="a stand-in")) == 5


def test_progress_tells_best_so_far_and_time_left(database):
    states = []
    done, _, _ = tune(database, progress=states.append)
    assert [s.trials for s in states if s.stage != "confirm"] == list(range(1, done.trials + 1))
    assert {s.stage for s in states} == {"default", "search", "confirm"}
    assert states[-1].best_ms == done.best_ms
    assert all(s.remaining is not None and s.remaining >= 0 for s in states)
    assert states[0].total == 60


def test_records_of_unknown_tilings_do_no_harm(database):
    workload = WORKLOADS[0]
    tiling = next(iter(workload.tilings(haswell()).values()))
    strange = record(workload, tiling, 1e-9)
    database.append(strange.model_copy(update={"tiling": {"row_block": 12345}}))
    done, _, _ = tune(database, [workload], run={"trials": 10})
    assert done.best_ms > 1e-3


@pytest.mark.parametrize("run", [{"trials": 0}, {"seconds": 0.0}, {"seconds": -1.0}])
def test_a_budget_must_be_positive(database, run):
    tuner = Tuner(
        database, {}, builder=(builder := StandInBuilder()), runner=StandInRunner(builder)
    )
    with pytest.raises(TuningError, match="expected more than 0"):
        tuner.run(**run)
