"""Data for the small network, and the library it is compiled into."""

from pathlib import Path

import numpy as np
import onnx
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


@pytest.fixture(scope="session")
def branches_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of tied layers, ends, and a layer without narrow kernels."""
    from tests.tvmquant.branches import export_branches

    return export_branches(tmp_path_factory.mktemp("onnx") / "branches.onnx")


@pytest.fixture(scope="session")
def branches_data(branches_onnx: Path) -> Path:
    """Images for it."""
    from tests.tvmquant.branches import SHAPE

    path = branches_onnx.parent / "images.npy"
    np.save(path, np.random.default_rng(1).normal(size=(24, *SHAPE)).astype("float32"))
    return path


@pytest.fixture(scope="session")
def branches_library(branches_onnx: Path, branches_data: Path, brief_timing: None) -> Path:
    """The network in 0.85 of the bytes, which 4-bit weights of one branch suffice for."""
    from tvmquant.bit_choice import W4A8
    from tvmquant.compilation import compile_onnx
    from tvmquant.mixed_precision import Wishes

    out = branches_onnx.parent / "library"
    wishes = Wishes(size="0.85x", choices=(W4A8,), sensitivity="output")
    compile_onnx(branches_onnx, branches_data, out=out, threads=1, wishes=wishes)
    return out


@pytest.fixture(scope="session")
def quantized_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the QDQ format whose last layer has no scale for its result."""
    from tests.tvmquant.qdq_models import Qdq

    g = Qdq()
    y = g.node("Relu", g.node("Conv", g.pair("x"), g.weight((8, 4, 3, 3), axis=0), g.bias(8)))
    y = g.node("Conv", g.pair(y, 0.0213), g.weight((4, 8, 1, 1)))
    path = tmp_path_factory.mktemp("onnx") / "quantized.onnx"
    onnx.save(g.model(y), path)
    return path
