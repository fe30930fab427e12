"""Networks on emulated processors give the oracle's numbers."""

from pathlib import Path

import numpy as np
import pytest

import tvmquant
from benchmarks import models
from benchmarks.aarch64.emulator import Processor
from benchmarks.accuracy import TASKS
from tvmquant.bit_choice import BitChoice
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers, uniform_choices


def _agrees(processor: Processor, quantized: Graph, x: np.ndarray, out: Path) -> bool:
    tvmquant.build(quantized, target=processor.target, out=out, threads=1)
    (expected,) = tvmquant.simulate(quantized, x)
    return np.array_equal(processor.run_network(out, x), expected)


@pytest.mark.parametrize(("name", "choice"), [("squeezenet", "w8a8"), ("resnet20", "w4a4")])
def test_trained_networks_are_exact(
    processor: Processor, shared_dir: Path, tmp_path: Path, name: str, choice: str
) -> None:
    graph = tvmquant.load_onnx(shared_dir / "models" / TASKS[name].model)
    shape = (2, *graph.inputs[0][1][1:])
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    choices = uniform_choices(quantizable_layers(graph), BitChoice.parse(choice))
    quantized = tvmquant.quantize(graph, tvmquant.calibrate(graph, x), choices=choices)
    assert _agrees(processor, quantized, x[:1], tmp_path / "library")


@pytest.mark.parametrize(("name", "size"), [("mobilenetv2", 64), ("unet", 32)])
def test_other_networks_are_exact(
    processor: Processor, tmp_path: Path, name: str, size: int
) -> None:
    path = models.export(name, tmp_path / "network.onnx", image_size=size)
    graph = tvmquant.load_onnx(path)
    x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    quantized = tvmquant.quantize(graph, tvmquant.calibrate(graph, x))
    assert _agrees(processor, quantized, x[:1], tmp_path / "library")
