"""Real networks: the twin against ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tvmquant.frontend import load_onnx
from tvmquant.twin import Twin


@pytest.mark.parametrize(
    ("model", "size", "deviation"),
    [("squeezenet1.1-imagenet", 227, 50.0), ("resnet20-cifar10", 32, 1.0)],
)
def test_equals_onnxruntime(shared_dir: Path, model: str, size: int, deviation: float) -> None:
    path = shared_dir / "models" / f"{model}.onnx"
    x = np.random.default_rng(0).normal(0, deviation, (2, 3, size, size)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"image": x})
    with torch.inference_mode():
        result = Twin(load_onnx(path).module)(torch.from_numpy(x)).numpy()
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()
