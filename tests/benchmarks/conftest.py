"""Networks that the tests of several benchmarks measure."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from benchmarks import models
from benchmarks.models import unet
from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from benchmarks.models.resnet import ResNet

SHAPE = (3, 32, 32)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """Return the file of a small classifier of ten classes, for images of 3x32x32."""
    path = tmp_path_factory.mktemp("benchmarks") / "net.onnx"
    with _one_thread():
        models.export("resnet18", path, image_size=32, num_classes=10)
    return path


@pytest.fixture(scope="session")
def shallow_network(tmp_path_factory):
    """Return the file of another one that has 7 layers to compile instead of 21."""
    path = tmp_path_factory.mktemp("benchmarks") / "shallow.onnx"
    with _one_thread(), torch.random.fork_rng(devices=[]):
        classifier = ResNet((1, 1), bottleneck=False, num_classes=10)
        randomise(classifier, SHAPE, seed=0)
        export_onnx(classifier, path, SHAPE)
    return path


@pytest.fixture
def shallow_unet(monkeypatch):
    """Let the random network unet have two levels instead of four: 8 layers instead of 18."""
    monkeypatch.setattr(unet, "_WIDTHS", unet._WIDTHS[:2])
