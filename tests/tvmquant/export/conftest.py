"""Networks that tests of several files export."""

import numpy as np
import pytest

from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from tests.tvmquant.networks import MIXTURE_SHAPE, export_mixture, images_of
from tests.tvmquant.test_widths import SHAPE, Network
from tvmquant.frontend import load_onnx
from tvmquant.quantization import calibrate


@pytest.fixture(scope="session")
def layers(tmp_path_factory):
    """A layer of every operation that has weights: graph, calibration and images."""
    network = Network().eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    path = export_onnx(network, tmp_path_factory.mktemp("onnx") / "layers.onnx", SHAPE)
    graph, images = load_onnx(path), images_of(SHAPE)
    return graph, calibrate(graph, images, batch_size=len(images)), images


@pytest.fixture(scope="session")
def mixture(tmp_path_factory):
    """One of every operator that becomes a kernel: graph, calibration and images."""
    path = export_mixture(tmp_path_factory.mktemp("onnx") / "mixture.onnx")
    graph, images = load_onnx(path), images_of(MIXTURE_SHAPE)
    return graph, calibrate(graph, images, batch_size=len(images)), images


@pytest.fixture(scope="session")
def vectors():
    """Inputs of twelve numbers."""
    return np.random.default_rng(3).standard_normal((16, 12)).astype(np.float32)
