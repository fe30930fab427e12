"""Compiling models that were quantized elsewhere: without data, with data, or anew."""

import json

import numpy as np
import pytest

from tvmquant.compilation import compile_onnx, plan_onnx
from tvmquant.deploy.manifest import Manifest
from tvmquant.errors import AllocationError, ArtifactError, DataError
from tvmquant.mixed_precision import Wishes


@pytest.fixture(scope="module")
def items():
    return np.random.default_rng(0).normal(size=(8, 4, 6, 5)).astype(np.float32)


def test_a_quantized_model_needs_no_data(quantized_onnx, tmp_path):
    out = tmp_path / "library"
    done = compile_onnx(quantized_onnx, out=out, threads=1, strict=True)
    assert list(done.seconds) == ["load", "quantize", "build"]
    assert compile_onnx(quantized_onnx, out=out, threads=1, strict=True).up_to_date
    outputs = Manifest.load(out).outputs
    assert [tensor.dtype for tensor in outputs] == ["float32"]
    with pytest.raises(ArtifactError, match="other settings"):
        compile_onnx(quantized_onnx, out=out, threads=1)


def test_data_give_scales_to_what_has_none(quantized_onnx, items, tmp_path):
    done = compile_onnx(quantized_onnx, items, out=tmp_path / "library", threads=1, samples=None)
    (kept,) = (tmp_path / "library").glob("calibration-*.json")
    # of the result only: the model brings the others
    assert len(json.loads(kept.read_text())["edges"]) == 1
    assert done.outputs[0].sqnr_db > 40


def test_a_model_is_quantized_anew_where_asked(quantized_onnx, items, tmp_path):
    done = compile_onnx(quantized_onnx, items, out=tmp_path / "library", threads=1, requantize=True)
    (kept,) = (tmp_path / "library").glob("calibration-*.json")
    assert len(json.loads(kept.read_text())["edges"]) == 3
    assert done.outputs[0].sqnr_db > 25


def test_bit_widths_are_not_chosen_for_a_quantized_model(quantized_onnx, items, tmp_path):
    wishes = Wishes(size="0.7x")
    for call in (compile_onnx, plan_onnx):
        with pytest.raises(AllocationError, match="quantized already: layer 'n4' has w8a8; pass"):
            call(quantized_onnx, items, wishes=wishes, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_float_model_needs_data(small_onnx, tmp_path):
    with pytest.raises(DataError, match="needs data to calibrate with; pass --data"):
        compile_onnx(small_onnx, out=tmp_path / "library")
