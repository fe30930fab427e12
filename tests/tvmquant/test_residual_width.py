"""Residual connections of a width of their own, from calibration to library and file."""

import numpy as np
import pytest
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from benchmarks.models.initialise import randomise
from tests.tvmquant.networks import Compiled, check_library, float_outputs, images_of, sqnr_db
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.passes import pipeline
from tvmquant.quantization import apply_calibration

SHAPE = (3, 12, 12)


class Network(nn.Module):
    """Four layers around which the signal goes on."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x).relu()
        for layer in self.layers:
            x = (layer(x) + x).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    network = Network().eval().requires_grad_(False)
    randomise(network, SHAPE, seed=0)
    path = export_onnx(network, tmp_path_factory.mktemp("onnx") / "net.onnx", SHAPE)
    graph, images = tvmquant.load_onnx(path), images_of(SHAPE)
    return graph, tvmquant.calibrate(graph, images, batch_size=len(images)), images


def compiled(subject, choice, bits):
    graph, calibration, images = subject
    choices = uniform_choices(quantizable_layers(graph), BitChoice.parse(choice))
    annotated = apply_calibration(graph, calibration, choices=choices, residual_bits=bits)
    quantized = annotated.with_module(pipeline.integerize(annotated.module, strict=True), "L2")
    return Compiled(graph, annotated, quantized, images)


@pytest.mark.parametrize(("choice", "bits"), [("w4a4", 8), ("w3a2", 6), ("w1a1", 8)])
def test_a_library_computes_what_the_oracle_and_the_file_do(subject, tmp_path, choice, bits):
    network = compiled(subject, choice, bits)
    manifest = check_library(network, tmp_path / "library", threads=1)
    narrow = BitChoice.parse(choice).activation.name
    assert [i.activation_format for i in manifest.layers if i.choice == choice] == [narrow] * 4
    tvmquant.export_onnx(network.annotated, tmp_path / "again.onnx")
    again = tvmquant.quantize(tvmquant.load_onnx(tmp_path / "again.onnx"))
    graphs = network.quantized, again
    (expected,), (found,) = (tvmquant.simulate(g, network.images) for g in graphs)
    np.testing.assert_array_equal(found, expected)


def test_what_goes_on_is_more_precise(subject):
    decibels = []
    for bits in (None, 8):
        network = compiled(subject, "w8a2", bits)
        (found,) = tvmquant.simulate(network.quantized, network.images)
        decibels.append(sqnr_db(float_outputs(network)[0], found))
    assert decibels[1] > decibels[0] + 3.0


def test_a_width_that_there_is_not(subject):
    with pytest.raises(QuantizationError, match="expected 2 to 8 bits"):
        compiled(subject, "w4a4", 9)
