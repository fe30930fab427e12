import pytest

import tvmquant
from tests.tvmquant.networks import MIXTURE_SHAPE, export_mixture, images_of
from tvmquant.deploy import build
from tvmquant.deploy.manifest import Manifest


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return tvmquant.load_onnx(export_mixture(tmp_path_factory.mktemp("onnx") / "mixture.onnx"))


def test_a_preview_lists_the_layers_of_the_library(small_onnx, small_library):
    found = tvmquant.preview(tvmquant.load_onnx(small_onnx), threads=1)
    assert found.float_audit == []

    def essence(layers):
        return [
            (layer.id, layer.op, layer.shape, layer.macs, layer.choice, layer.kernel)
            for layer in layers
        ]

    assert essence(found.layers) == essence(Manifest.load(small_library).layers)


@pytest.mark.parametrize("target", ["haswell", "znver4"])
def test_the_kernels_are_those_of_a_compilation(mixture, target, tmp_path, monkeypatch):
    """With pairs bounded where these are needed, for the same threads and batch."""
    # kernels are chosen before LLVM compiles them
    monkeypatch.setattr(build, "compile_in_worker", lambda _m, _t, library: library.touch())
    calibration = tvmquant.calibrate(mixture, images_of(MIXTURE_SHAPE))
    quantized = tvmquant.quantize(mixture, calibration, bound_pairs=target == "haswell")
    manifest = tvmquant.build(quantized, target=target, out=tmp_path, threads=2, batch=3)
    found = tvmquant.preview(mixture, target=target, threads=2, batch=3)
    assert [layer.kernel for layer in found.layers] == [layer.kernel for layer in manifest.layers]
    assert [layer.macs for layer in found.layers] == [layer.macs for layer in manifest.layers]
    pairs = sum("pmaddubsw" in layer.kernel for layer in found.layers)
    assert (pairs > 0) == (target == "haswell")


def test_random_items_are_the_same_each_time(mixture):
    first, second = (tvmquant.preview(mixture, target="haswell", threads=1) for _ in range(2))
    assert first == second
