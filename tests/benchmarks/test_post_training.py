import sys

import numpy as np
import onnx
import pytest

from benchmarks import models, peers, post_training
from tvmquant.errors import DataError, TVMQuantError

SHAPE = (3, 32, 32)


def _batches(count=4):
    return [models.synthetic_images(4, SHAPE, seed=seed) for seed in range(count)]


def _sqnr_db(reference, other):
    return 10 * np.log10((reference**2).sum() / ((reference - other) ** 2).sum())


@pytest.mark.parametrize("reduce_range", [False, True])
def test_onnxruntime_int8_is_near_float_and_really_integer(network, reduce_range, tmp_path):
    quantized = post_training.quantize_with_onnxruntime(
        network, iter(_batches()), tmp_path / "q.onnx", reduce_range=reduce_range
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
    exact = peers.OnnxRuntimePeer(network, threads=1, name="onnxruntime-float").run(images)
    near = peers.OnnxRuntimePeer(quantized, threads=1).run(images)
    assert near.shape == exact.shape == (8, 10)
    # without VNNI, products of 8-bit weights saturate in 16 bits, which 7-bit weights avoid
    assert (15 if reduce_range else 8) < _sqnr_db(exact, near) < 60


def test_without_calibration_data_nothing_is_written(network, tmp_path):
    with pytest.raises(DataError, match="holds no batch"):
        post_training.quantize_with_onnxruntime(network, [], tmp_path / "q.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["performance", "mixed"])
def test_nncf_keeps_biases_float_and_weights_symmetric(preset, network, tmp_path):
    pytest.importorskip("nncf", reason="not part of any extra")
    batches = [batch[:1] for batch in _batches()]
    path = post_training.quantize_with_nncf(network, batches, tmp_path / "n.onnx", preset=preset)
    assert list(tmp_path.iterdir()) == [path]
    graph = onnx.load(path).graph
    kinds = {value.data_type for value in graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert onnx.TensorProto.INT32 not in kinds
    image = models.synthetic_images(1, SHAPE, seed=21)
    exact, near = (peers.OnnxRuntimePeer(p, threads=1).run(image) for p in (network, path))
    assert 8 < _sqnr_db(exact, near) < 60


def test_a_missing_tool_is_named(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(TVMQuantError, match=r"nncf is not installed.*`pip install nncf`"):
        post_training.quantize_with_nncf(network, _batches(1), tmp_path / "n.onnx")
