import tvmquant
from tvmquant.deploy.manifest import Manifest


def test_a_preview_lists_the_layers_of_the_library(small_onnx, small_library):
    found = tvmquant.preview(tvmquant.load_onnx(small_onnx), threads=1)
    assert found.float_audit == []

    def essence(layers):
        return [(layer.id, layer.op, layer.shape, layer.macs, layer.choice) for layer in layers]

    assert essence(found.layers) == essence(Manifest.load(small_library).layers)
