import sys

import numpy as np
import pytest

from benchmarks import models, peers
from tvmquant.errors import TVMQuantError

SHAPE = (3, 32, 32)


def _batches(count=4):
    return [models.synthetic_images(4, SHAPE, seed=seed) for seed in range(count)]


def _sqnr_db(reference, other):
    return 10 * np.log10((reference**2).sum() / ((reference - other) ** 2).sum())


def test_every_engine_runs_float_and_int8(network, tmp_path):
    pytest.importorskip("openvino", reason="needs tvmquant[peers]")
    built = peers.build_peers(network, _batches(), (1, *SHAPE), tmp_path, reduce_range=True)
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


def test_an_unknown_engine_is_named(network, tmp_path):
    with pytest.raises(ValueError, match="unknown engine 'tflite'; expected onnxrun"):
        peers.build_peers(network, _batches(1), (1, *SHAPE), tmp_path, engines=["tflite"])


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_a_missing_engine_names_the_extra(package, network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TVMQuantError, match=rf"{package} is not installed.*tvmquant\[peers\]"):
        peers.build_peers(network, _batches(1), (1, *SHAPE), tmp_path, engines=[package])
