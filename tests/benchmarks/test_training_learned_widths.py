"""What widths take is counted as targets count it."""

import pytest
import torch

import tvmquant
from benchmarks.training.learned_widths import shares
from tests.tvmquant.training import small
from tvmquant.bit_choice import BitChoice
from tvmquant.frontend import load_onnx
from tvmquant.layers import quantizable_layers


def test_uniform_widths_take_their_share(tmp_path) -> None:
    graph = load_onnx(small.export(tmp_path / "small.onnx"))
    images, _ = small.data(16)
    calibration = tvmquant.calibrate(graph, images)
    choices = {layer.id: BitChoice.parse("w4a6") for layer in quantizable_layers(graph)}
    network = tvmquant.apply_calibration(graph, calibration, choices=choices)
    pooled, others = 16 * 4 * 4, 3 * 8 * 8 + 8 * 8 * 8 + 16 * 4 * 4 + 16
    activations = (pooled + 0.75 * others) / (pooled + others)  # what a pool reads stays at 8 bits
    assert shares(network, torch.from_numpy(images[:1])) == pytest.approx((0.5, activations))
