import collections

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from benchmarks import models
from benchmarks.models.exporter import export_onnx
from benchmarks.models.quicknet import BlurPool
from tests.pairwise import pairwise
from tvmquant.nn import BinaryConv2d

# parameters, multiplications at the published size (convolutions and dense layers)
PUBLISHED = {
    "resnet18": (11_689_512, 1.814e9),
    "resnet50": (25_557_032, 4.089e9),
    "inceptionv3": (23_834_568, 5.713e9),
    "mobilenetv1": (4_231_976, 0.5687e9),
    "mobilenetv2": (3_504_872, 0.3008e9),
    # 407 M in the announcement, which counts the normalizations too
    "efficientnet-lite0": (4_652_008, 0.385e9),
    "mobilenetv3-small": (2_542_856, 0.0565e9),
    "densenet121": (7_978_856, 2.834e9),
    "bwn-resnet18": (11_689_512, 1.814e9),
}
# Multiplications of signs, and of real numbers: Liu et al. (2020), table 1, where the second has
# the numbers of Bi-Real-18
PUBLISHED_BINARY = {"reactnet-a": (4.82e9, 0.012e9), "reactnet18": (1.68e9, 0.139e9)}
SMALL = {"inceptionv3": 75, "densenet121": 64, "unet": 64, "unet-resize": 64, "quicknet-small": 96}
# of which the exporter leaves normalizations: they stand before a convolution or after a transposed
# one, or after one whose weight is not a constant to it
UNFOLDED = (
    "densenet121", "unet", "reactnet-a", "reactnet18", "reactnet20-cifar", "xnor-resnet18",
    "bwn-resnet18", "quicknet-small",
)  # fmt: skip
# built in fewer runs: the others have all that they consist of
SLOW = ("resnet50", "mobilenetv1", "efficientnet-lite0", "reactnet-a", "reactnet18")
CLASSES = 20
# opset, and whether normalization is folded: all but what is exported by default
OTHER_EXPORTS = [(11, True), (11, False), (17, False), (21, True), (21, False)]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in models.names()
    ],
)
def small(request):
    """Return the name, image size and network of each model on small images."""
    size = SMALL.get(request.param, 32)
    network = models.build(request.param, image_size=size, num_classes=CLASSES)
    return request.param, size, network


def _define(name):
    """Return the network as it is before any weight is drawn."""
    return models._find(name).define(1000).eval()


def _multiplications(network, shape, kind=nn.Module):
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if not isinstance(module, kind):
            return
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, *shape))
    return total


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiplications_are_the_published_ones(name):
    parameters, multiplications = PUBLISHED[name]
    network = _define(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    counted = _multiplications(network, models.input_shape(name))
    assert counted == pytest.approx(multiplications, rel=2e-3)


@pytest.mark.parametrize("name", PUBLISHED_BINARY)
def test_binary_multiplications_are_the_published_ones(name):
    binary, real = PUBLISHED_BINARY[name]
    network, shape = _define(name), models.input_shape(name)
    counted = _multiplications(network, shape, BinaryConv2d)
    assert counted == pytest.approx(binary, rel=4e-3)
    assert _multiplications(network, shape) - counted == pytest.approx(real, rel=2e-2)


def test_quicknet_small_has_the_parameters_of_larq_zoo():
    """It counts blurs, and the mean and the variance of every normalization."""
    network = _define("quicknet-small")
    tensors = [*network.parameters()]
    for module in network.modules():
        if isinstance(module, BlurPool):
            tensors.append(module.kernel)
        elif isinstance(module, nn.BatchNorm2d):
            tensors += [module.running_mean, module.running_var]
    # QuickNetSmall(weights=None).count_params() of larq-zoo 2.4.0
    assert sum(tensor.numel() for tensor in tensors) == 12_664_344


def test_reactnet_a_halves_the_picture_and_doubles_the_channels():
    shapes = []
    network = _define("reactnet-a")
    for block in network.blocks:
        block.register_forward_hook(lambda _module, _inputs, y: shapes.append(tuple(y.shape[1:3])))
    network(torch.zeros(1, 3, 224, 224))
    assert shapes == [
        (64, 112), *[(128, 56)] * 2, *[(256, 28)] * 2, *[(512, 14)] * 6, *[(1024, 7)] * 2
    ]  # fmt: skip


def test_resnet50_strides_in_the_3x3_convolutions():
    strided = [m for m in _define("resnet50").modules() if isinstance(m, nn.Conv2d)]
    kernels = [m.kernel_size for m in strided if m.stride == (2, 2)]
    # the stem, then in each of three stages one 3x3 and the projection of its shortcut
    assert collections.Counter(kernels) == {(7, 7): 1, (3, 3): 3, (1, 1): 3}


def test_activations_neither_die_nor_explode(small):
    _, size, network = small
    spreads = []

    def record(module, inputs, output):
        spreads.append(output.std().item())

    hooks = [
        module.register_forward_hook(record)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    network(torch.from_numpy(models.synthetic_images(8, (3, size, size), seed=11)))
    for hook in hooks:
        hook.remove()
    assert len(spreads) > 10
    assert min(spreads) > 0.15  # of residual branches behind signs
    assert max(spreads) < 4


def test_logits_differ_between_inputs(small):
    _, size, network = small
    logits = network(torch.from_numpy(models.synthetic_images(16, (3, size, size), seed=12)))
    over_images = (0,) if logits.ndim == 2 else (0, 2, 3)
    between = (logits - logits.mean(over_images, keepdim=True)).std()
    assert 0.5 < between < 6
    assert len(logits.argmax(1).unique()) >= 5


def test_equal_seeds_give_equal_networks_and_leave_the_random_state_alone():
    state = torch.random.get_rng_state()
    first, again, other = (
        models.build("mobilenetv2", seed=seed, image_size=32, num_classes=5).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def _check_export(path, network, opset, *, batch):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits"]
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    images = models.synthetic_images(batch, (3, size, size), seed=13)
    expected = network(torch.from_numpy(images)).numpy()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3)
    return collections.Counter(node.op_type for node in model.graph.node)


def test_torchscript_export_computes_the_same(small, tmp_path):
    _check_torchscript_export(*small, 17, True, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "fold_bn"), OTHER_EXPORTS)
def test_every_torchscript_export_computes_the_same(small, opset, fold_bn, tmp_path):
    _check_torchscript_export(*small, opset, fold_bn, tmp_path)


@pytest.mark.parametrize(
    *pairwise(strength=1, name=["mobilenetv3-small", "unet"], export=OTHER_EXPORTS)
)
def test_torchscript_export_of_other_opsets(name, export, tmp_path):
    opset, fold_bn = export
    size = SMALL.get(name, 32)
    network = models.build(name, image_size=size, num_classes=CLASSES)
    _check_torchscript_export(name, size, network, opset, fold_bn, tmp_path)


def _check_torchscript_export(name, size, network, opset, fold_bn, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(network, path, (3, size, size), opset=opset, fold_bn=fold_bn)
    nodes = _check_export(path, network, opset, batch=3)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    if not fold_bn:
        assert nodes["BatchNormalization"] == norms
    elif name not in UNFOLDED:
        assert nodes["BatchNormalization"] == 0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "opset", "fold_bn"),
    [
        ("unet-resize", 18, False),
        ("unet-resize", 21, True),
        pytest.param("mobilenetv3-small", 18, False, marks=pytest.mark.slow),
        pytest.param("mobilenetv3-small", 21, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("shallow_unet")  # this exporter takes its time
def test_dynamo_export_computes_the_same(name, opset, fold_bn, tmp_path):
    size = SMALL.get(name, 32)
    network = models.build(name, image_size=size, num_classes=CLASSES)
    path = models.export(
        name,
        tmp_path / "model.onnx",
        style="dynamo",
        opset=opset,
        fold_bn=fold_bn,
        image_size=size,
        num_classes=CLASSES,
    )
    nodes = _check_export(path, network, opset, batch=3)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert nodes["BatchNormalization"] == (0 if fold_bn else norms)


def test_a_fixed_batch_is_one(tmp_path):
    network = models.build("resnet18", image_size=32, num_classes=5)
    path = export_onnx(network, tmp_path / "m.onnx", (3, 32, 32), dynamic_batch=False)
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 32, 32]
    _check_export(path, network, 17, batch=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg"}, "unknown model 'vgg'; expected one of resnet18"),
        ({"image_size": 31}, "image_size = 31; expected at least 32"),
        ({"name": "unet", "image_size": 60}, "expected at least 16, a multiple of 8"),
        ({"style": "keras"}, "unknown style 'keras'; expected one of torchscript, dynamo"),
        ({"opset": 22}, "does not write opset 22; expected 11 to 21"),
        ({"style": "dynamo", "opset": 17}, "does not write opset 17; expected 18 to 21"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(arguments, message, tmp_path):
    arguments = {"name": "mobilenetv3-small", "image_size": 32, **arguments}
    with pytest.raises(ValueError, match=message):
        models.export(arguments.pop("name"), tmp_path / "m.onnx", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def fail(self, data):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        models.export("mobilenetv3-small", path, image_size=32, num_classes=5)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_synthetic_images_are_reproducible_bounded_and_unlike_one_another():
    images = models.synthetic_images(6, (3, 40, 24), seed=3)
    assert images.dtype == np.float32
    assert images.shape == (6, 3, 40, 24)
    assert np.abs(images).max() <= 0.5 / 0.225 + 1e-6
    np.testing.assert_array_equal(images, models.synthetic_images(6, (3, 40, 24), seed=3))
    assert not np.array_equal(images, models.synthetic_images(6, (3, 40, 24), seed=4))
    correlation = np.corrcoef(images.reshape(6, -1)) - np.eye(6)
    assert correlation.max() < 0.95
    # neighbours resemble each other as they do in photographs
    assert np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1] > 0.6
