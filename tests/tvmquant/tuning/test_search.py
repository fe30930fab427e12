"""The evolutionary search, and the model that ranks its candidates."""

import math

import numpy as np
import pytest

from tests.tvmquant.tuning.kernels import THREADS, conv, depthwise, haswell, synthetic_seconds
from tvmquant.tuning.cost_model import FEWEST, CostModel, features
from tvmquant.tuning.search import Search


@pytest.fixture(params=["conv2d", "depthwise_conv2d"])
def landscape(request):
    """Return a workload, its tilings, and a synthetic time for each of them."""
    workload = conv(64, 64) if request.param == "conv2d" else depthwise()
    tilings = list(workload.tilings(haswell()).values())
    return workload, tilings, np.array([synthetic_seconds(workload, t) for t in tilings])


def ranks(values):
    return np.argsort(np.argsort(values))


def test_the_cost_model_ranks_what_it_has_not_seen(landscape):
    workload, tilings, seconds = landscape
    rows = [features(workload, tiling, THREADS) for tiling in tilings]
    targets = np.log(seconds / seconds[0])
    order = np.random.default_rng(0).permutation(len(tilings))
    seen, unseen = order[:64], order[64:]
    model = CostModel()
    model.fit([rows[i] for i in seen], targets[seen])
    predicted = model.predict([rows[i] for i in unseen])
    assert np.corrcoef(ranks(predicted), ranks(targets[unseen]))[0, 1] > 0.8


def test_what_is_learned_of_layers_serves_another():
    rows, targets = [], []
    for channels in (32, 64, 128):
        workload = conv(channels, channels)
        tilings = list(workload.tilings(haswell()).values())
        default = synthetic_seconds(workload, tilings[0])
        for tiling in tilings[::5]:
            rows.append(features(workload, tiling, THREADS))
            targets.append(math.log(synthetic_seconds(workload, tiling) / default))
    model = CostModel()
    model.fit(rows, targets)
    other = conv(96, 96)
    tilings = list(other.tilings(haswell()).values())
    predicted = model.predict([features(other, tiling, THREADS) for tiling in tilings])
    seconds = [synthetic_seconds(other, tiling) for tiling in tilings]
    assert np.corrcoef(ranks(predicted), ranks(seconds))[0, 1] > 0.7


def test_a_model_of_few_measurements_has_no_opinion():
    workload = conv()
    tilings = list(workload.tilings(haswell()).values())
    rows = [features(workload, tiling, THREADS) for tiling in tilings[: FEWEST - 1]]
    model = CostModel()
    model.fit(rows, [0.0] * len(rows))
    assert not model.trained
    assert not model.predict(rows).any()


def trials_until(target_cost, workload, tilings, seconds, seed, *, random):
    """Return how many measurements it takes to find a tiling as fast as that."""
    rng = np.random.default_rng(seed)
    if random:
        order = rng.permutation(len(tilings))
        return 1 + int(np.flatnonzero(seconds[order] <= target_cost)[0])
    search, model = Search(tilings, rng), CostModel(seed)
    measured = {0: float(seconds[0])}

    def predict(indices):
        return model.predict([features(workload, tilings[i], THREADS) for i in indices])

    while min(measured.values()) > target_cost:
        for index in search.propose(measured, 8, predict):
            measured[index] = float(seconds[index])
        model.fit(
            [features(workload, tilings[i], THREADS) for i in measured],
            [math.log(s / seconds[0]) for s in measured.values()],
        )
    return len(measured)


def test_the_search_finds_the_fastest_tiling_sooner_than_chance(landscape):
    workload, tilings, seconds = landscape
    wanted = seconds.min()
    found = [trials_until(wanted, workload, tilings, seconds, s, random=False) for s in range(5)]
    chance = [trials_until(wanted, workload, tilings, seconds, s, random=True) for s in range(40)]
    assert np.mean(found) < 0.6 * np.mean(chance)


def test_proposals_are_distinct_and_new_until_the_space_is_used_up():
    tilings = list(conv(16, 16).tilings(haswell()).values())[:37]
    search = Search(tilings, np.random.default_rng(0))
    measured = {0: 1.0}
    while proposals := search.propose(measured, 8, lambda i: np.zeros(len(i), np.float32)):
        assert len(proposals) == len(set(proposals)) <= 8
        assert not set(proposals) & set(measured)
        measured.update(dict.fromkeys(proposals, math.inf))
    assert len(measured) == len(tilings)


def test_a_space_of_one_tiling_offers_nothing():
    tilings = list(conv().tilings(haswell()).values())[:1]
    search = Search(tilings, np.random.default_rng(0))
    assert search.propose({}, 8, lambda i: np.zeros(len(i), np.float32)) == [0]
    assert search.propose({0: 1.0}, 8, lambda i: np.zeros(len(i), np.float32)) == []


def test_features_are_finite_and_tell_tilings_apart(landscape):
    workload, tilings, _ = landscape
    rows = [features(workload, tiling, THREADS) for tiling in tilings]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert len({tuple(sorted(row.items())) for row in rows}) == len(rows)
