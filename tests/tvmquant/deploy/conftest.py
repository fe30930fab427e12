"""The small network, quantized, and a library of it for the tests of each module."""

from pathlib import Path

import numpy as np
import pytest

from tvmquant.deploy.build import build
from tvmquant.frontend import load_onnx
from tvmquant.graph import Graph
from tvmquant.quantization import calibrate, quantize


@pytest.fixture(scope="session")
def float_graph(small_onnx: Path) -> Graph:
    return load_onnx(small_onnx)


@pytest.fixture(scope="session")
def images(small_data: Path) -> np.ndarray:
    """Forty inputs, (40, 3, 8, 8)."""
    with np.load(small_data) as data:
        return data["images"]


@pytest.fixture(scope="session")
def quantized(float_graph: Graph, images: np.ndarray) -> Graph:
    return quantize(float_graph, calibrate(float_graph, images))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, quantized: Graph) -> Path:
    """A library for this machine, one thread; not to be changed."""
    out = tmp_path_factory.mktemp("built") / "library"
    build(quantized, out=out, threads=1)
    return out
