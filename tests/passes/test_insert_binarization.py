"""Chosen layers become binary; what stands around them is as the method has it."""

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from benchmarks.models.exporter import export_onnx
from tvmquant.frontend import load_onnx
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.passes import pipeline
from tvmquant.passes.insert_binarization import (
    InsertBinarization,
    Rewrite,
    few_valued_weight,
    reasons_against,
)
from tvmquant.twin import Twin

REACTNET = Rewrite(thresholds=True, shortcuts=True, activation="slopes")


class Residual(nn.Module):
    """Two layers around which something leads, then one that halves the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shrink = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.odd = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        x = torch.relu(self.shrink(torch.relu(x + y)))
        return self.head(torch.relu(self.odd(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    path = tmp_path_factory.mktemp("residual") / "residual.onnx"
    export_onnx(_network(), path, (3, 8, 8), fold_bn=False)
    return pipeline.canonicalize(load_onnx(path).module, fold_batch_norm=False)


def _layers(module):
    """Return the names of the layers by the last part of their weights' names."""
    named = [span_name(v) for _, v in bindings_of(module["main"])
             if qop.is_call(v, *qop.FLOAT_CONTRACTIONS)]  # fmt: skip
    return {name.strip("/").split("/")[0]: name for name in named}


def _images(count=3):
    return torch.from_numpy(
        np.random.default_rng(0).normal(0.0, 1.0, (count, 3, 8, 8)).astype(np.float32)
    )


def _constants(module):
    return {span_name(v): qop.constant_array(v.args[0])
            for _, v in bindings_of(module["main"]) if qop.is_call(v, qop.FAKE_QUANT)}  # fmt: skip


def _sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


def _binary(layer, x):
    weight = layer.weight
    scale = weight.abs().mean((1, 2, 3), keepdim=True)
    return nn.functional.conv2d(_sign(x), _sign(weight) * scale, None, layer.stride, layer.padding)


def _network():
    torch.manual_seed(0)
    network = Residual().eval()
    with torch.no_grad():
        for norm in (network.norm, network.norm1, network.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return network


def test_a_shortcut_leads_around_every_layer(module) -> None:
    names = _layers(module)
    chosen = [names[name] for name in ("conv1", "conv2", "shrink")]
    twin = Twin(InsertBinarization(chosen, REACTNET)(module))
    network = _network()

    def slope(x):
        return torch.where(x >= 0, x, 0.25 * x)

    with torch.no_grad():
        x = slope(network.norm(network.stem(_images())))
        x = slope(network.norm1(_binary(network.conv1, x)) + x)
        x = slope(network.norm2(_binary(network.conv2, x)) + x)
        way = nn.functional.avg_pool2d(x, 2)
        y = _binary(network.shrink, x) / np.sqrt(1.0 + 1e-5) + network.shrink.bias[:, None, None]
        x = slope(y + torch.cat([way, way], 1))
        wanted = network.head(torch.relu(network.odd(x)).mean((2, 3)))
        np.testing.assert_allclose(twin(_images()), wanted, rtol=1e-4, atol=1e-5)


def test_signs_are_those_of_what_a_relu_reads(module) -> None:
    names = _layers(module)
    twin = Twin(InsertBinarization([names["conv1"], names["conv2"]], Rewrite())(module))
    network = _network()
    with torch.no_grad():
        before = network.norm(network.stem(_images()))
        x = torch.relu(before)
        y = network.norm2(_binary(network.conv2, network.norm1(_binary(network.conv1, before))))
        x = torch.relu(network.shrink(torch.relu(x + y)))
        wanted = network.head(torch.relu(network.odd(x)).mean((2, 3)))
        np.testing.assert_allclose(twin(_images()), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["hardtanh", "none"])
def test_relus_before_signs_become_something_else(module, activation) -> None:
    names = _layers(module)
    how = Rewrite(activation=activation)
    twin = Twin(InsertBinarization([names["conv2"]], how)(module))
    network = _network()

    def act(x):
        return x.clamp(-1.0, 1.0) if activation == "hardtanh" else x

    with torch.no_grad():
        x = torch.relu(network.norm(network.stem(_images())))
        y = network.norm2(_binary(network.conv2, act(network.norm1(network.conv1(x)))))
        x = torch.relu(network.shrink(act(x + y)))
        wanted = network.head(torch.relu(network.odd(x)).mean((2, 3)))
        np.testing.assert_allclose(twin(_images()), wanted, rtol=1e-4, atol=1e-5)


def test_weights_alone(module) -> None:
    names = _layers(module)
    rewritten = InsertBinarization([names["conv1"]], Rewrite(signs=False))(module)
    network = _network()
    with torch.no_grad():
        x = torch.relu(network.norm(network.stem(_images())))
        weight = network.conv1.weight
        scale = weight.abs().mean((1, 2, 3), keepdim=True)
        y = nn.functional.conv2d(x, _sign(weight) * scale, padding=1)
        y = network.norm2(network.conv2(torch.relu(network.norm1(y))))
        x = torch.relu(network.shrink(torch.relu(x + y)))
        wanted = network.head(torch.relu(network.odd(x)).mean((2, 3)))
        np.testing.assert_allclose(Twin(rewritten)(_images()), wanted, rtol=1e-4, atol=1e-5)


def test_the_real_numbers_stay(module) -> None:
    names = _layers(module)
    rewritten = InsertBinarization([names["conv1"]], Rewrite())(module)
    np.testing.assert_array_equal(
        Twin(rewritten).weights[names["conv1"]].detach(), _network().conv1.weight.detach()
    )


def test_nothing_chosen_is_nothing_changed(module) -> None:
    tvm.ir.assert_structural_equal(InsertBinarization([], REACTNET)(module), module)


def test_what_cannot_be_binary_is_known(module) -> None:
    names = _layers(module)
    plain, around = reasons_against(module, Rewrite()), reasons_against(module, REACTNET)
    assert not any(plain.values())
    assert "repeats channels" in around[names["odd"]]
    assert "it is dense" in around[names["head"]]
    assert not around[names["shrink"]]


def test_scales_are_mean_magnitudes() -> None:
    weight = np.asarray([[1.0, -3.0], [0.0, 0.5]], np.float32)
    call = few_valued_weight(weight, "binary", axis=1, name="dense")
    np.testing.assert_array_equal(qop.constant_array(call.args[1]), [0.5, 1.75])
    call = few_valued_weight(weight, "int2", axis=0, name="dense")
    np.testing.assert_array_equal(qop.constant_array(call.args[1]), [3.0, 0.5])


class Projected(nn.Module):
    """A block of two layers whose shortcut is a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.projection, self.norm3 = nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        x = torch.relu(y + self.norm3(self.projection(x)))
        return self.head(x.mean((2, 3)))


def test_a_projection_gives_way_to_shortcuts(tmp_path) -> None:
    torch.manual_seed(0)
    export_onnx(Projected().eval(), tmp_path / "projected.onnx", (3, 8, 8), fold_bn=False)
    module = pipeline.canonicalize(load_onnx(tmp_path / "projected.onnx").module,
                                   fold_batch_norm=False)  # fmt: skip
    names = _layers(module)
    chosen = [names[name] for name in ("conv1", "conv2", "projection")]
    left = _layers(InsertBinarization(chosen, REACTNET)(module))
    assert set(left) == {"stem", "conv1", "conv2", "head"}
