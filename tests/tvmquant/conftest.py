"""Data for the small network, and the library it is compiled into."""

from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator


@pytest.fixture(scope="session")
def small_data(small_onnx: Path) -> Path:
    """Forty inputs whose labels are what the float model answers."""
    images = np.random.default_rng(1).normal(size=(40, 3, 8, 8)).astype("float32")
    (logits,) = ReferenceEvaluator(str(small_onnx)).run(None, {"x": images})
    path = small_onnx.parent / "data.npz"
    np.savez(path, images=images, labels=logits.argmax(1))
    return path


@pytest.fixture(scope="session")
def small_library(small_onnx: Path, small_data: Path) -> Path:
    """The network compiled for this machine, one thread."""
    from tvmquant.compilation import compile_onnx

    out = small_onnx.parent / "library"
    compile_onnx(small_onnx, small_data, out=out, threads=1)
    return out
