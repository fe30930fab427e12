"""A network that the tests of several benchmarks measure."""

import pytest
import torch

from benchmarks import models


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """Return the file of a small classifier of ten classes, for images of 3x32x32."""
    path = tmp_path_factory.mktemp("benchmarks") / "net.onnx"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    models.export("resnet18", path, image_size=32, num_classes=10)
    torch.set_num_threads(before)
    return path
