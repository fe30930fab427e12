"""One library of several widths: each is its exact twin, from weights that are stored once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tvmquant
from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from tests.tvmquant.networks import images_of
from tvmquant.bit_choice import BitChoice
from tvmquant.cli.app import app
from tvmquant.errors import ArtifactError, ModelError, QuantizationError
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.machine import Machine
from tvmquant.passes import pipeline
from tvmquant.passes.store_weights import WEIGHTS
from tvmquant.quantization import apply_calibration
from tvmquant.schedules.weight_layout import WeightLayout
from tvmquant.session.width_files import models_at_widths
from tvmquant.twin import Twin

SHAPE = (3, 8, 8)
WIDTHS = (8, 6, 4, 2)


class Network(nn.Module):
    """Layers with weights to share, and some without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.left, self.right = nn.Conv2d(32, 40, 3, padding=1), nn.Conv2d(32, 40, 1)
        self.grouped = nn.Conv2d(40, 40, 3, groups=4, dilation=2, padding=2)
        self.depthwise = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Any) -> Any:
        x = self.stem(x).relu()
        x = (self.left(x).relu() + self.right(x)).relu()
        x = self.depthwise(self.grouped(x).relu()).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Graph]:
    """The network at every width: narrower weights are wider ones, requantized."""
    torch.manual_seed(0)
    network = Network().eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    path = export_onnx(network, tmp_path_factory.mktemp("onnx") / "net.onnx", SHAPE)
    graph, images = tvmquant.load_onnx(path), images_of(SHAPE)
    calibration = tvmquant.calibrate(graph, images, batch_size=len(images))
    layers = quantizable_layers(graph)
    found, wide = {}, None
    for width in WIDTHS:
        choices = uniform_choices(layers, BitChoice.parse(f"w{width}a{width}"))
        given = apply_calibration(
            graph, calibration, choices=choices, bound_pairs=False, correct_bias=False
        )
        twin = Twin(given.module, mode="quantized")
        wide = wide or twin
        if width != WIDTHS[0]:
            _follow(twin, wide, width)
        found[width] = given.with_module(twin.write_back())
    return found


def _follow(twin: Twin, wide: Twin, width: int) -> None:
    for layer, weight in twin.weights.items():
        steps, scale = _steps(wide, layer)
        if width == 2 and layer.endswith("left/Conv"):
            continue  # a layer whose weights do not follow
        quantizer = twin.quantizers[twin.weight_edges[layer]]
        narrow = quantizer.scale.reshape(scale.shape)
        ratio = torch.round(256 * scale / narrow)
        follows = torch.floor((steps * ratio + 128) / 256)
        # as folding a normalization does, with a gain of another sign
        channel = torch.arange(scale.numel()).reshape(scale.shape)
        signed = torch.where(channel % 3 == 0, -1.0, 1.0)
        levels = torch.clamp(follows, int(quantizer.qmin), int(quantizer.qmax)) * signed
        weight.data.copy_(levels * narrow)


def _steps(twin: Twin, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    weight = twin.weights[layer].detach()
    scale = twin.quantizers[twin.weight_edges[layer]].scale.detach()
    axis = 1 if weight.ndim == 2 else 0
    scale = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    return torch.clamp(torch.round(weight / scale), -127, 127), scale


def integers(graph: Graph) -> Graph:
    return graph.with_module(pipeline.integerize(graph.module), "L2")


@pytest.fixture(scope="module")
def library(annotated: dict[int, Graph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("libraries") / "several"
    graphs = {width: integers(annotated[width]) for width in (4, 8, 2, 6)}
    tvmquant.build(graphs, out=out, threads=1)
    return out


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_is_its_exact_twin(
    annotated: dict[int, Graph], library: Path, width: int, raw: bool
) -> None:
    twin = Twin(annotated[width].module, mode="exact")
    model, reference = tvmquant.load(library, width=width), images_of(SHAPE)[:3]
    expected = twin(torch.from_numpy(reference)).numpy()
    if raw:
        model = tvmquant.load(library, width=width, raw=True)
    ((info,), (result,)) = model.inputs, model.outputs
    for x, wanted in zip(reference, expected, strict=True):
        if raw:
            steps = np.rint(x[None] / info.scale) + info.zero_point
            x_q = np.clip(steps, *info.raw_range).astype(info.raw_dtype)
            if info.raw_layout == "NHWC":
                x_q = x_q.transpose(0, 2, 3, 1)
            y = (model(np.ascontiguousarray(x_q)).astype(np.float32) - result.zero_point) * (
                result.scales
            )
            np.testing.assert_array_equal(y.astype(np.float32), wanted[None])
        else:
            np.testing.assert_array_equal(model(x[None]), wanted[None])
    assert model.manifest.width == width
    assert model.manifest.widths == list(WIDTHS)
    assert model.manifest.at(8).layers == tvmquant.load(library).manifest.layers


def test_weights_are_stored_once(
    annotated: dict[int, Graph], library: Path, tmp_path: Path
) -> None:
    alone = tvmquant.build(integers(annotated[8]), out=tmp_path / "alone", threads=1)
    several = tvmquant.load(library).manifest
    assert several.layers == alone.layers
    assert several.widths == list(WIDTHS)
    machine = Machine.of("native", 1)
    lowered = {
        width: pipeline.expose_integers(pipeline.lower(integers(graph).module, machine, 1))
        for width, graph in annotated.items()
    }
    stored = pipeline.store_weights(pipeline.merge(lowered)).attrs[WEIGHTS]
    derived = [found for found in stored if "source" in found]
    # the stem, which has 8 bits at all widths, but signs of its own at the first; three layers, but
    # not "left" of 2 bits; none of depthwise layers
    assert len(derived) == 1 + 3 * 3 - 1
    for found in derived:
        assert found["data"].numpy().nbytes == 3 * WeightLayout.loads(str(found["layout"])).outputs


def test_a_width_that_there_is_not(library: Path, small_library: Path) -> None:
    with pytest.raises(ArtifactError, match=r"width 3: .* has the widths 8, 6, 4, 2"):
        tvmquant.load(library, width=3)
    with pytest.raises(ArtifactError, match=r"width 8: .* one choice of bit widths; leave width"):
        tvmquant.load(small_library, width=8)
    result = CliRunner().invoke(app, ["bench", str(library), "--width", "5"])
    assert result.exit_code == 2
    assert "has the widths 8, 6, 4, 2" in result.output


def test_networks_of_other_inputs_are_refused(
    annotated: dict[int, Graph], quantized: Graph, tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match="the graph at width 4 has other inputs"):
        tvmquant.build({8: integers(annotated[8]), 4: quantized}, out=tmp_path / "out")


def test_a_folder_of_quantized_models_is_compiled(
    annotated: dict[int, Graph], library: Path, tmp_path: Path
) -> None:
    for width in (8, 4):
        tvmquant.export_onnx(annotated[width], tmp_path / f"trained-w{width}.onnx")
    out = tmp_path / "library"
    arguments = ["compile", str(tmp_path), "-o", str(out), "--threads", "1", "--json", "-q"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["widths"] == [8, 4]
    images = images_of(SHAPE)[:2]
    np.save(tmp_path / "x.npy", images[:1])
    for width in (8, 4):
        expected = tvmquant.load(library, width=width)(images[:1])
        result = CliRunner().invoke(
            app,
            ["run", str(out), str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "-q",
             "--width", str(width)],
        )  # fmt: skip
        assert result.exit_code == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "a folder without files such as trained-w8.onnx"),
        (("a-w4.onnx", "b-w4.onnx"), "a-w4.onnx and b-w4.onnx are named after several"),
    ],
)
def test_folders_that_are_no_network(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=message):
        models_at_widths(tmp_path)


def test_networks_that_are_not_as_they_were_trained_are_refused(
    small_onnx: Path, tmp_path: Path
) -> None:
    for width in (8, 4):
        (tmp_path / f"net-w{width}.onnx").write_bytes(small_onnx.read_bytes())
    images = np.zeros((1, 3, 8, 8), np.float32)

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ModelError, match=message):
            tvmquant.compile_onnx(tmp_path, images, out=tmp_path / "out", **options)

    refused(r"net-w8\.onnx brings no scales")
    refused("at 8, 4 bits, .*; leave out the choice of all layers, or give", choice="w4a8")
    refused("leave out --reconstruct and --requantize, or", reconstruct=True, requantize=True)
