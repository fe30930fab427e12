import sys

import numpy as np
import onnx
import pytest
import torch

from benchmarks import models, peers
from tvmquant.errors import DataError, TVMQuantError

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def float_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "net.onnx"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    models.export("resnet18", path, image_size=32, num_classes=10)
    torch.set_num_threads(before)
    return path


def _batches(count=4):
    return [models.synthetic_images(4, SHAPE, seed=seed) for seed in range(count)]


def _sqnr_db(reference, other):
    return 10 * np.log10((reference**2).sum() / ((reference - other) ** 2).sum())


@pytest.mark.parametrize("reduce_range", [False, True])
def test_onnxruntime_int8_is_near_float_and_really_integer(float_model, reduce_range, tmp_path):
    quantized = peers.quantize_with_onnxruntime(
        float_model, iter(_batches()), tmp_path / "q.onnx", reduce_range=reduce_range
    )
    assert list(tmp_path.iterdir()) == [quantized]
    graph = onnx.load(quantized).graph
    weights = [
        onnx.numpy_helper.to_array(value)
        for value in graph.initializer
        if value.data_type == onnx.TensorProto.INT8 and len(value.dims) == 4
    ]
    assert len(weights) == 20
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == (
        64 if reduce_range else 127
    )
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) >= 20
    images = models.synthetic_images(8, SHAPE, seed=21)
    exact = peers.OnnxRuntimePeer(float_model, threads=1, name="onnxruntime-float").run(images)
    near = peers.OnnxRuntimePeer(quantized, threads=1).run(images)
    assert near.shape == exact.shape == (8, 10)
    # without VNNI, products of 8-bit weights saturate in 16 bits, which 7-bit weights avoid
    assert (15 if reduce_range else 8) < _sqnr_db(exact, near) < 60


def test_without_calibration_data_nothing_is_written(float_model, tmp_path):
    with pytest.raises(DataError, match="holds no batch"):
        peers.quantize_with_onnxruntime(float_model, [], tmp_path / "q.onnx")
    assert not list(tmp_path.iterdir())


def test_every_engine_runs_float_and_int8(float_model, tmp_path):
    pytest.importorskip("openvino", reason="needs tvmquant[peers]")
    built = peers.build_peers(float_model, _batches(), (1, *SHAPE), tmp_path, reduce_range=True)
    assert list(built) == [
        f"{engine}-{precision}"
        for engine in ("onnxruntime", "openvino")
        for precision in ("float", "int8")
    ]
    assert [peer.name for peer in built.values()] == list(built)
    image = models.synthetic_images(1, SHAPE, seed=22)
    outputs = {name: peer.run(image) for name, peer in built.items()}
    exact = outputs["onnxruntime-float"]
    np.testing.assert_allclose(outputs["openvino-float"], exact, rtol=0, atol=1e-3)
    for name in ("onnxruntime-int8", "openvino-int8"):
        assert 12 < _sqnr_db(exact, outputs[name]) < 60
    assert set(built["openvino-float"].executed_precisions()["Convolution"]) == {"f32"}
    assert set(built["openvino-int8"].executed_precisions()["Convolution"]) <= {"u8", "i8"}


def test_an_unknown_engine_is_named(float_model, tmp_path):
    with pytest.raises(ValueError, match="unknown engine 'tflite'; expected onnxrun"):
        peers.build_peers(float_model, _batches(1), (1, *SHAPE), tmp_path, engines=["tflite"])


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_a_missing_engine_names_the_extra(package, float_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TVMQuantError, match=rf"{package} is not installed.*tvmquant\[peers\]"):
        peers.build_peers(float_model, _batches(1), (1, *SHAPE), tmp_path, engines=[package])
