"""The public function: choices, settings, the cache, mistakes and what is not finite."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import tvmquant
from tests.tvmquant.sensitivity.test_curvature import labelled
from tvmquant.bit_choice import W4A4, W4A8, BitChoice
from tvmquant.errors import DataError, SensitivityError
from tvmquant.sensitivity import METHODS, Sensitivity, estimate_sensitivity
from tvmquant.sensitivity.quantizers import make_quantizers
from tvmquant.sensitivity.record import SCHEMA_VERSION

CURVATURE = ["hessian", "fisher"]
ESTIMATES = [*CURVATURE, "output"]


@pytest.mark.parametrize("method", METHODS)
def test_every_choice_of_every_layer(graph, images, calibration, method):
    choices = [W4A8, W4A4, BitChoice.parse("w4a8g32")]
    found = estimate_sensitivity(
        graph, images[:8], calibration, method=method, choices=choices, max_probes=4
    )
    assert list(found.perturbation) == [i.id for i in tvmquant.quantizable_layers(graph)]
    for row in found.perturbation.values():
        assert set(row) == {"w8a8", "w4a8", "w4a4", "w4a8g32"}
        assert all(math.isfinite(value) and value >= 0 for value in row.values())
        assert row["w4a4"] >= row["w4a8"] * 0.999 or method == "output"
    assert found.count == 8
    again = estimate_sensitivity(
        graph, images[:8], calibration, method=method, choices=choices, max_probes=4
    )
    assert again == found


@pytest.mark.parametrize("method", ESTIMATES)
def test_labels_change_the_loss(graph, images, calibration, method):
    data, _ = labelled(images)
    soft = estimate_sensitivity(graph, data, calibration, method=method, max_probes=4)
    hard = estimate_sensitivity(graph, data, calibration, method=method, labels=True, max_probes=4)
    assert (soft.labelled, hard.labelled) == (False, True)
    assert soft.perturbation != hard.perturbation


def test_estimates_are_kept(graph, images, calibration, tmp_path, monkeypatch):
    first = estimate_sensitivity(graph, images, calibration, method="fisher", cache=tmp_path)
    (path,) = tmp_path.glob("sensitivity-*.json")
    assert Sensitivity.load(path) == first
    monkeypatch.setattr("tvmquant.sensitivity.estimate.make_quantizers", None)
    again = estimate_sensitivity(graph, images, calibration, method="fisher", cache=tmp_path)
    assert again == first
    for change in ({"data": images + 1}, {"seed": 1}, {"tolerance": 0.2}, {"choices": [W4A8]},
                   {"weight_method": "minmax"}, {"activation_scheme": "symmetric"}):  # fmt: skip
        wanted = {"data": images, "method": "fisher", "cache": tmp_path} | change
        with pytest.raises(TypeError):  # not the file that is there
            estimate_sensitivity(graph, calibration=calibration, **wanted)


def test_a_damaged_file_is_replaced(graph, images, calibration, tmp_path, caplog):
    settings = {"method": "random", "cache": tmp_path}
    first = estimate_sensitivity(graph, images, calibration, **settings)
    (path,) = tmp_path.glob("sensitivity-*.json")
    path.write_text(json.dumps({"schema_version": SCHEMA_VERSION}))
    assert estimate_sensitivity(graph, images, calibration, **settings) == first
    assert Sensitivity.load(path) == first
    assert "method: Field required" in caplog.text


@pytest.mark.parametrize("method", ESTIMATES)
def test_an_interrupted_estimate_leaves_nothing(graph, images, calibration, tmp_path, method):
    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_sensitivity(
            graph, images, calibration, method=method, cache=tmp_path, progress=interrupt
        )
    assert not list(tmp_path.iterdir())


def test_mistakes_are_named(graph, images, calibration):
    with pytest.raises(SensitivityError, match="'trace' is unknown; expected one of hessian"):
        estimate_sensitivity(graph, images, calibration, method="trace")
    with pytest.raises(SensitivityError, match="tolerance = 0"):
        estimate_sensitivity(graph, images, calibration, tolerance=0)
    with pytest.raises(DataError, match="sensitivity needs data"):
        estimate_sensitivity(graph, None, calibration)
    with pytest.raises(DataError, match="has no labels"):
        estimate_sensitivity(graph, images, calibration, labels=True)
    with pytest.raises(DataError, match=r"labels 0\.\.6 do not fit a model of 3 classes"):
        estimate_sensitivity(graph, labelled(images, 7)[0], calibration, labels=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_probes": 3}, "max_probes = 3; expected an integer >= 4"),
        ({"batch_size": 0}, "batch_size = 0; expected an integer >= 1"),
        ({"tolerance": math.nan}, "tolerance = nan; expected more than 0"),
        ({"loss": "l2"}, "loss 'l2' is unknown; expected one of auto, cross_entropy"),
    ],
)
def test_wrong_settings_are_named(graph, images, calibration, settings, message):
    with pytest.raises(SensitivityError, match=message):
        estimate_sensitivity(graph, images, calibration, **settings)


@pytest.mark.parametrize("method", ESTIMATES)
def test_an_activation_that_is_not_finite_is_named(graph, images, calibration, method):
    huge = images.copy()
    huge[3] = np.float32(3e38)
    with pytest.raises(SensitivityError, match="the tensor '/1/Relu' of the float model is NaN or"):
        estimate_sensitivity(graph, huge, calibration, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_is_not_finite_is_named(graph, images, calibration, method, monkeypatch):
    def damaged(*arguments, **options):
        quantizers = make_quantizers(*arguments, **options)
        quantizers.twin.weights["/2/Conv"].data[1] = torch.nan
        return quantizers

    monkeypatch.setattr("tvmquant.sensitivity.estimate.make_quantizers", damaged)
    with pytest.raises(SensitivityError, match="the weight of '/2/Conv' is NaN or infinite"):
        estimate_sensitivity(graph, images, calibration, method=method)


@pytest.mark.parametrize("method", CURVATURE)
def test_a_hessian_that_is_not_finite_is_named(import_network, images, method):
    class Root(nn.Module):
        """The root of 0 has an infinite derivative, times 0."""

        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 3)
            self.stem.weight.data[0], self.stem.bias.data[0] = 0.0, 0.0

        def forward(self, x):
            y = self.stem(x)
            return self.head((y * y).sqrt().mean((2, 3)))

    graph, calibration = import_network(Root())
    with pytest.raises(SensitivityError, match="the Hessian of the weight '/stem/Conv' is NaN or"):
        estimate_sensitivity(graph, images, calibration, method=method)


def test_a_network_without_scores_is_refused(import_network, images):
    class Answer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(2, 3, 5)

        def forward(self, x):
            return self.stem(x).flatten(1).argmax(1)

    graph, calibration = import_network(Answer())
    with pytest.raises(DataError, match="no output of the network holds real values"):
        estimate_sensitivity(graph, images, calibration)


def test_progress_is_told(graph, images, calibration):
    seen = []
    estimate_sensitivity(
        graph, images, calibration, method="fisher", progress=lambda *done: seen.append(done)
    )
    done, total = seen[-1]
    assert done == total
    assert done % len(images) == 0
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert all(d <= t for d, t in seen)
