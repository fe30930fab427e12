"""A small smooth network, its graph, its data and its calibration."""

import numpy as np
import pytest
import torch
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx

SHAPE = (2, 5, 5)


@pytest.fixture(scope="session")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.Softplus(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip
    for parameter in network.parameters():
        parameter.data *= 2.0
    return network.eval()


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).standard_normal((24, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="session")
def import_network(tmp_path_factory, images):
    """Return a function: a torch network as a graph, and its calibration."""

    def run(network, data=images):
        path = tmp_path_factory.mktemp("net") / "net.onnx"
        graph = tvmquant.load_onnx(export_onnx(network.eval(), path, data.shape[1:]))
        return graph, tvmquant.calibrate(graph, data)

    return run


@pytest.fixture(scope="session")
def imported(network, import_network):
    return import_network(network)


@pytest.fixture(scope="session")
def graph(imported):
    return imported[0]


@pytest.fixture(scope="session")
def calibration(imported):
    return imported[1]
