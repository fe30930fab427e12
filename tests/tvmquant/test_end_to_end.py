"""From an ONNX file to a library that answers bit for bit as the simulator does."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import models
from tests.tvmquant import networks
from tests.tvmquant.networks import MIXTURE_SHAPE, check_library, compile_network
from tvmquant.data import open_data
from tvmquant.deploy.build import build
from tvmquant.deploy.loader import load
from tvmquant.errors import QuantizationError
from tvmquant.frontend import load_onnx
from tvmquant.layers import quantizable_layers
from tvmquant.passes.verify_integer_only import float_audit
from tvmquant.simulator import simulate

# Height and width as small as the network allows, and the least signal-to-quantization-noise ratio
# of its logits, a few decibels below what was seen: random weights forgive less than trained ones.
MODELS = {
    "resnet18": (32, 18),
    "resnet50": (32, 12),
    "inceptionv3": (75, 8),
    "mobilenetv1": (32, 11),
    "mobilenetv2": (32, 11),
    "efficientnet-lite0": (32, 10),
    "mobilenetv3-small": (32, 12),
    "densenet121": (32, 12),
    "unet": (16, 22),
    "unet-resize": (16, 22),
    "reactnet-a": (32, 5),
    "reactnet18": (32, 12),
    "reactnet20-cifar": (32, 20),
    "xnor-resnet18": (32, 15),
    "bwn-resnet18": (32, 18),
    "quicknet-small": (96, 14),
}

# those that are built in every run: of transposed and binary convolutions; of plain ones is the
# real ResNet-20, of gates and depthwise ones the mixture
BUILT = ("unet-resize", "reactnet20-cifar")

# 3x3 and 1x1 convolutions of one bit or with binary weights, which the others have at 8 bits
BINARY = {
    "reactnet-a": ("w1a1", 13 + 18),
    "reactnet18": ("w1a1", 16),
    "reactnet20-cifar": ("w1a1", 18),
    "xnor-resnet18": ("w1a1", 16),
    "bwn-resnet18": ("w1a8", 16),
    "quicknet-small": ("w1a1", 16),
}

REAL_MODELS = {
    "squeezenet1.1-imagenet": ("imagenet-1000.tar", "squeezenet-caffe", 20),
    "resnet20-cifar10": ("cifar10-test.tar", "cifar10", 15),
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """One of every operator, compiled up to integers."""
    path = networks.export_mixture(tmp_path_factory.mktemp("mixture") / "mixture.onnx")
    return compile_network(path, networks.images_of(MIXTURE_SHAPE))


@pytest.fixture(scope="module")
def library(tmp_path_factory, mixture):
    """What the manifest says of the mixture's library for this machine."""
    return build(mixture.quantized, out=tmp_path_factory.mktemp("mixture") / "library")


def check_accuracy(network, floor):
    for reference, found in zip(
        networks.float_outputs(network), simulate(network.quantized, network.images), strict=True
    ):
        assert networks.sqnr_db(reference, found) > floor


def check_profile(out, manifest, images):
    rows = load(out).profile(images, repeats=2)
    assert [layer for layer, _ in rows] == manifest.layers
    assert all(seconds > 0 for _, seconds in rows)
    raw = load(out, raw=True).profile(np.zeros(manifest.inputs[0].raw_shape, "uint8"), repeats=2)
    assert [layer for layer, _ in raw] == manifest.layers[1:-1]


def test_every_model_is_here():
    assert set(MODELS) == set(models.names())


def compile_architecture(name, folder):
    """Export a network and turn it into integers."""
    size = MODELS[name][0]
    path = models.export(name, folder / f"{name}.onnx", image_size=size, num_classes=10)
    return compile_network(path, networks.images_of((3, size, size)))


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3-small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "mobilenetv2",
                "efficientnet-lite0",
                "unet",
                "quicknet-small",
                "xnor-resnet18",
            )
        ),
    ],
)
def test_known_architectures_become_integers(tmp_path, name):
    network = compile_architecture(name, tmp_path)
    assert float_audit(network.quantized.module) == []
    check_accuracy(network, MODELS[name][1])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in BUILT else pytest.mark.slow) for name in BINARY],
)
def test_binary_layers_are_known(tmp_path, name):
    choice, count = BINARY[name]
    path = models.export(name, tmp_path / "n.onnx", image_size=MODELS[name][0], num_classes=10)
    choices = [str(layer.usual) for layer in quantizable_layers(load_onnx(path))]
    assert choices.count(choice) == count
    assert set(choices) == {choice, "w8a8"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in BUILT else pytest.mark.slow) for name in MODELS],
)
def test_known_architectures(tmp_path, name):
    floor = MODELS[name][1]
    network = compile_architecture(name, tmp_path)
    manifest = check_library(network, tmp_path / "library", threads=2)
    assert manifest.float_audit == []
    assert manifest.has_raw
    check_accuracy(network, floor)
    check_profile(tmp_path / "library", manifest, network.images[:1])


@pytest.mark.parametrize("name", REAL_MODELS)
def test_real_networks(tmp_path, shared_dir, name):
    archive, recipe, floor = REAL_MODELS[name]
    model, data = shared_dir / "models" / f"{name}.onnx", shared_dir / "data" / archive
    for path in (model, data):
        if not path.is_file():
            pytest.skip(f"{path} is not there")
    dataset = open_data(data, recipe, select={"step": 100, "limit": 8})
    images = np.concatenate([batch for batch, _ in dataset])
    network = compile_network(model, images)
    manifest = check_library(network, tmp_path / "library")
    assert manifest.float_audit == []
    assert manifest.has_raw
    check_accuracy(network, floor)


@pytest.mark.parametrize(
    ("style", "fold_bn"),
    [
        ("torchscript", False),
        ("dynamo", True),
        pytest.param("torchscript", True, marks=pytest.mark.slow),
        pytest.param("dynamo", False, marks=pytest.mark.slow),
    ],
)
def test_both_exporters(tmp_path, style, fold_bn):
    opset = 18 if style == "dynamo" else 11
    path = networks.export_mixture(
        tmp_path / "mixture.onnx", style=style, fold_bn=fold_bn, opset=opset
    )
    network = compile_network(path, networks.images_of(MIXTURE_SHAPE))
    manifest = check_library(network, tmp_path / "library")
    assert manifest.float_audit == []
    check_accuracy(network, 20)
    check_profile(tmp_path / "library", manifest, network.images[:1])


@pytest.mark.parametrize("target", ["haswell", "x86-64", "-mcpu=x86-64 -mattr=+avx2"])
def test_forced_targets(tmp_path, mixture, target):
    manifest = check_library(mixture, tmp_path / "library", target=target)
    assert ("avx2" in manifest.target["features"]) == (target != "x86-64")


def test_weights_rounded_for_the_target(tmp_path, mixture):
    path = networks.export_mixture(tmp_path / "mixture.onnx")
    network = compile_network(path, mixture.images)
    check_library(network, tmp_path / "library", target="haswell")
    check_accuracy(network, 20)


@pytest.mark.parametrize(
    ("batch", "threads", "loaded"), [(3, 1, None), (2, 2, 1), (1, 1, 2), (1, 5, 3)]
)
def test_batches_and_threads(tmp_path, mixture, library, batch, threads, loaded):
    manifest = check_library(
        mixture, tmp_path / "library", batch=batch, threads=threads, loaded_threads=loaded
    )
    assert manifest.threads == threads
    assert manifest.inputs[0].shape == [batch, *MIXTURE_SHAPE]
    assert manifest.inputs[0].raw_shape == [batch, *MIXTURE_SHAPE[1:], MIXTURE_SHAPE[0]]
    work = [layer.macs for layer in library.layers]
    assert sum(work) > 0
    assert [layer.macs for layer in manifest.layers] == [batch * macs for macs in work]


@pytest.mark.parametrize("scheme", ["symmetric", "auto"])
def test_activation_schemes(tmp_path, mixture, scheme):
    path = networks.export_mixture(tmp_path / "mixture.onnx")
    network = compile_network(path, mixture.images, activation_scheme=scheme)
    check_library(network, tmp_path / "library")
    check_accuracy(network, 18)


@pytest.fixture(scope="module")
def positive(tmp_path_factory, small_onnx):
    """The small network, of weights that are never negative."""
    model = onnx.load(small_onnx)
    for tensor in model.graph.initializer:
        array = np.abs(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = tmp_path_factory.mktemp("positive") / "positive.onnx"
    onnx.save(model, path)
    return path


def test_the_unsigned_scheme_of_a_network_without_negative_activations(tmp_path, positive):
    images = np.abs(networks.images_of((3, 8, 8)))
    network = compile_network(positive, images, activation_scheme="unsigned")
    check_library(network, tmp_path / "library")
    check_accuracy(network, 30)


def test_the_unsigned_scheme_refuses_negative_activations(positive):
    images = np.abs(networks.images_of((3, 8, 8)))
    with pytest.raises(QuantizationError, match="unsigned"):
        compile_network(positive, -images, activation_scheme="unsigned")


def test_float_library(tmp_path, mixture):
    manifest = build(mixture.graph, out=tmp_path / "library")
    assert not manifest.has_raw
    assert manifest.float_audit == []
    found = load(tmp_path / "library")(mixture.images[:1])
    (expected,) = networks.float_outputs(mixture)
    np.testing.assert_allclose(found, expected[:1], rtol=1e-3, atol=1e-3)


def test_equal_calls_give_equal_libraries(tmp_path, mixture, library):
    again = build(mixture.quantized, out=tmp_path / "library")
    assert again.to_dict() == library.to_dict()


def test_several_outputs(tmp_path):
    network = compile_network(two_outputs(tmp_path / "two.onnx"), networks.images_of((3, 6, 6)))
    manifest = check_library(network, tmp_path / "library")
    assert [info.name for info in manifest.outputs] == ["trunk", "y"]
    assert [info.shape for info in manifest.outputs] == [[1, 8, 6, 6], [1, 4, 6, 6]]
    assert manifest.has_raw


def test_float_operators_in_the_middle(tmp_path):
    network = compile_network(
        two_outputs(tmp_path / "two.onnx", middle="Softmax"), networks.images_of((3, 6, 6))
    )
    manifest = check_library(network, tmp_path / "library")
    assert [entry["op"] for entry in manifest.float_audit] == ["softmax"]
    assert manifest.float_audit[0]["node"] == "middle"
    rows = load(tmp_path / "library").profile(network.images[:1], repeats=1)
    assert [layer.id for layer, _ in rows].count("middle") >= 1


def two_outputs(path, middle="Relu"):
    """Write a network whose trunk is an output, and goes on."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 3, 3, 3)), "v": rng.normal(size=(4, 8, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "conv_a", pads=[1] * 4),
        helper.make_node(
            middle, ["c"], ["trunk"], "middle", **({} if middle == "Relu" else {"axis": 1})
        ),
        helper.make_node("Conv", ["trunk", "v"], ["y"], "conv_b"),
    ]
    outputs = {"trunk": ["N", 8, 6, 6], "y": ["N", 4, 6, 6]}
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(w.astype("float32"), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path
