"""Trained networks: the exported file rounds as the library does, on real images."""

from pathlib import Path

import numpy as np
import pytest

from tests.tvmquant.export.graphs import checked, choices_of, compared
from tvmquant.data import open_data
from tvmquant.frontend import load_onnx
from tvmquant.passes import pipeline
from tvmquant.quantization import apply_calibration, calibrate
from tvmquant.simulator import simulate

NETWORKS = {
    "squeezenet": ("squeezenet1.1-imagenet.onnx", "imagenet-1000.tar", "squeezenet-caffe"),
    "resnet20": ("resnet20-cifar10.onnx", "cifar10-test.tar", "cifar10"),
}
CALIBRATED, COMPARED = 32, 2


@pytest.fixture(scope="module")
def opened(shared_dir: Path):
    """Return graph, calibration and images of a network, made once."""
    known = {}

    def open_network(name: str):
        if name not in known:
            model, data, recipe = NETWORKS[name]
            graph = load_onnx(shared_dir / "models" / model)
            images = open_data(shared_dir / "data" / data, recipe, inputs=graph.item_inputs())
            few = images.subset(step=len(images) // CALIBRATED, limit=CALIBRATED)
            batches = [batch for batch, _ in few.subset(limit=COMPARED)]
            known[name] = graph, calibrate(graph, few), np.concatenate(batches)
        return known[name]

    return open_network


@pytest.mark.parametrize(
    ("name", "choice", "opset"),
    [
        ("resnet20", "w8a8", 13),
        ("resnet20", "w4a4", 21),
        *(
            pytest.param(name, choice, opset, marks=pytest.mark.slow)
            for name in NETWORKS
            for choice in ("w8a8", "w4a4", "w4a8g32", "w6a6", "w3a5")
            for opset in (13, 19, 21, 25)
        ),
    ],
)
def test_roundings_are_equal(opened, name: str, choice: str, opset: int) -> None:
    graph, calibration, images = opened(name)
    network = apply_calibration(graph, calibration, choices=choices_of(graph, choice))
    found = compared(checked(network, opset=opset), images[:COMPARED])
    rounding = found.rounding
    assert rounding.count > 100_000
    assert rounding.largest <= 1
    assert rounding.equal > 0.9999


@pytest.mark.parametrize(
    ("name", "choice"), [("resnet20", "w8a8"), ("resnet20", "w4a4"), ("squeezenet", "w4a8g32")]
)
def test_imported_again_they_give_the_same_integers(opened, name: str, choice: str) -> None:
    graph, calibration, images = opened(name)
    network = apply_calibration(graph, calibration, choices=choices_of(graph, choice))
    again = apply_calibration(load_onnx(checked(network).model), None)
    before, after = (pipeline.integerize(g.module) for g in (network, again))
    (expected,), (found,) = (simulate(module, images[:COMPARED]) for module in (before, after))
    np.testing.assert_array_equal(found, expected)
