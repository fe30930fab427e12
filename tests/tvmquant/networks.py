"""Networks for the tests of whole compilations, and what is asked of every one of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.models import synthetic_images
from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from tvmquant.deploy.build import build
from tvmquant.deploy.loader import load
from tvmquant.deploy.manifest import Manifest
from tvmquant.frontend import load_onnx
from tvmquant.graph import Graph
from tvmquant.passes import pipeline
from tvmquant.quantization import apply_calibration, calibrate
from tvmquant.simulator import simulate
from tvmquant.twin import Twin

MIXTURE_SHAPE = (3, 12, 12)


class Mixture(nn.Module):
    """One of every operator that becomes a kernel, in as few layers as that takes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 5, 1, 2, groups=12, bias=False), nn.BatchNorm2d(12), nn.Hardswish()
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = nn.Conv2d(12, 12, 1)
        self.grouped = nn.Sequential(
            nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1, groups=2), nn.Sigmoid()
        )
        self.branches = nn.ModuleList([nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1)])
        self.up = nn.Sequential(
            nn.ConvTranspose2d(48, 7, 3, 2, 1, 1), nn.BatchNorm2d(7), nn.LeakyReLU(0.1)
        )
        self.head = nn.Linear(19, 10)

    def forward(self, image):
        x = self.stem(image)
        y = self.depthwise(x)
        x = x + self.project(y * self.gate(y))
        y = torch.cat([self.grouped(x), *(branch(x) for branch in self.branches)], 1)
        y = torch.cat([self.up(y), x], 1)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(y, 1), 1))


def export_mixture(path: Path, **options) -> Path:
    """Write a `Mixture` of random weights as ONNX."""
    with torch.random.fork_rng(devices=[]):
        network = Mixture()
    network.eval().requires_grad_(False)
    randomise(network, MIXTURE_SHAPE, seed=0)
    return export_onnx(network, path, MIXTURE_SHAPE, **options)


def images_of(shape: tuple[int, int, int], count: int = 8) -> np.ndarray:
    """Draw what a network is calibrated and run with."""
    return synthetic_images(count, shape, seed=1)


@dataclass(frozen=True)
class Compiled:
    """A network at every stage."""

    graph: Graph
    annotated: Graph
    quantized: Graph
    images: np.ndarray


def compile_network(path: Path, images: np.ndarray, **options) -> Compiled:
    """Import, calibrate and quantize."""
    graph = load_onnx(path)
    calibration = calibrate(graph, images, batch_size=len(images), **options)
    annotated = apply_calibration(graph, calibration, **options)
    quantized = annotated.with_module(pipeline.integerize(annotated.module), "L2")
    return Compiled(graph, annotated, quantized, images)


def as_tuple(outputs) -> tuple[np.ndarray, ...]:
    """Return outputs as a tuple, as the simulator does."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """Return the signal-to-quantization-noise ratio."""
    noise = ((reference - found) ** 2).sum()
    return float(10 * np.log10((reference**2).sum() / max(noise, 1e-30)))


def float_outputs(network: Compiled) -> tuple[np.ndarray, ...]:
    """Run the float network."""
    with torch.inference_mode():
        outputs = Twin(network.graph.module)(torch.from_numpy(network.images))
    return tuple(np.asarray(o) for o in (outputs if isinstance(outputs, tuple) else (outputs,)))


def check_library(
    network: Compiled, out: Path, *, batch: int = 1, loaded_threads: int | None = None, **options
) -> Manifest:
    """Build a library and compare it with the simulator, bit for bit, float and raw.

    So is the exact twin, if nothing stayed float.
    """
    manifest = build(network.quantized, out=out, batch=batch, **options)
    images = network.images[:batch]
    expected = simulate(network.quantized, images)
    if not manifest.float_audit:
        exact = Twin(network.annotated.module, mode="exact")(torch.from_numpy(images))
        for output, reference in zip(as_tuple(exact), expected, strict=True):
            np.testing.assert_array_equal(output.numpy(), reference)
    model = load(out, threads=loaded_threads)
    found = as_tuple(model(images))
    assert len(found) == len(expected)
    for output, reference in zip(found, expected, strict=True):
        assert output.dtype == np.float32
        np.testing.assert_array_equal(output, reference)
    if manifest.has_raw:
        check_raw(out, manifest, images, expected)
    return manifest


def check_raw(out: Path, manifest: Manifest, images: np.ndarray, expected) -> None:
    """Quantize by hand, run on integers, dequantize by hand."""
    info, integers = manifest.inputs[0], images
    if info.dtype == "float32":
        low, high = info.raw_range
        scaled = np.rint(images / np.float32(info.scale)) + info.zero_point
        integers = np.clip(scaled, low, high).astype(info.raw_dtype)
    if info.raw_layout == "NHWC":
        integers = np.ascontiguousarray(integers.transpose(0, 2, 3, 1))
    outputs = as_tuple(load(out, raw=True)(integers))
    for info, raw, reference in zip(manifest.outputs, outputs, expected, strict=True):
        assert list(raw.shape) == info.raw_shape
        assert str(raw.dtype) == info.raw_dtype
        real = (raw.astype(np.int32) - info.zero_point).astype(np.float32) * np.float32(info.scale)
        if info.raw_layout == "NHWC":
            real = real.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(real, reference)
