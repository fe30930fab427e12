"""Weights whose output channels fit different widths: their integers, and what they take."""

import numpy as np
import onnx
import pytest

import tvmquant
from tests.tvmquant.qdq_models import Qdq

OUTPUTS = 64


def _model(path, widths):
    """Write a network of a convolution whose channels fit these widths in turn."""
    random, qdq = np.random.default_rng(0), Qdq()
    most = 2 ** (np.resize(widths, OUTPUTS) - 1) - 1
    levels = np.rint(random.uniform(-1, 1, (OUTPUTS, OUTPUTS, 3, 3)) * most[:, None, None, None])
    levels[:, 0, 0, 0] = most
    x = qdq.pair("x")
    x = qdq.pair(qdq.node("Conv", x, qdq.weight((OUTPUTS, 4, 1, 1))))
    scale = random.uniform(0.001, 0.004, OUTPUTS).astype(np.float32)
    weight = qdq.node("DequantizeLinear", levels.astype(np.int8), scale, axis=0)
    onnx.save(qdq.model(qdq.pair(qdq.node("Conv", x, weight, pads=[1] * 4))), path)
    return path


@pytest.mark.parametrize("target", ["native", "haswell"])
def test_a_library_holds_each_channel_at_its_width(tmp_path, target) -> None:
    images = np.random.default_rng(1).uniform(-5, 5, (1, 4, 6, 5)).astype(np.float32)
    sizes = {}
    for name, widths in (("mixed", (2, 2, 3, 6)), ("narrow", (2, 2, 3, 4)), ("whole", (6,))):
        integer = tvmquant.quantize(tvmquant.load_onnx(_model(tmp_path / f"{name}.onnx", widths)))
        tvmquant.build(integer, target=target, out=tmp_path / name, threads=1)
        library = tvmquant.load(tmp_path / name)
        np.testing.assert_array_equal(library(images), tvmquant.simulate(integer, images)[0])
        sizes[name] = library.manifest.library["bytes"]
        (_, layer) = [found for found in library.manifest.layers if found.choice]
        counts = np.bincount(np.resize(widths, OUTPUTS), minlength=9)[2:]
        assert layer.channel_widths == ([] if name == "whole" else counts.tolist())
        assert layer.weight_format == f"int{max(widths)}"
    saved = OUTPUTS * OUTPUTS * 9 * (6 - 3.25) / 8
    assert sizes["whole"] - sizes["mixed"] == pytest.approx(saved, abs=4096)
