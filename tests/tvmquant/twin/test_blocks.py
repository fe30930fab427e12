"""Parts of a network compute what the network does."""

import pytest
import torch
from torch import nn

import tvmquant
from benchmarks.models.exporter import export_onnx
from tvmquant.frontend import load_onnx
from tvmquant.twin import Twin, blocks

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Residual(), nn.MaxPool2d(2), Forked(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    path = export_onnx(network.eval(), tmp_path_factory.mktemp("blocks") / "forked.onnx", SHAPE)
    graph = load_onnx(path)
    images = torch.randn(8, *SHAPE).numpy()
    return tvmquant.apply_calibration(graph, tvmquant.calibrate(graph, images))


def test_blocks_lie_between_points_where_one_tensor_is_alive(annotated) -> None:
    twin = Twin(annotated.module)
    layers = list(twin.weights)
    assert [block.layers for block in twin.blocks(widest=False)] == [(name,) for name in layers]
    first, one, two, left, right, last = layers
    found = [block.layers for block in twin.blocks(widest=True)]
    assert found == [(first,), (one, two), (left, right), (last,)]


def test_what_is_too_long_falls_into_layers(annotated, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "MOST_LAYERS", 1)
    twin = Twin(annotated.module)
    assert [block.layers for block in twin.blocks(widest=True)] == [(n,) for n in twin.weights]


@pytest.mark.parametrize("mode", ["float", "quantized"])
@pytest.mark.parametrize("widest", [False, True])
def test_a_block_computes_its_part_of_the_network(annotated, mode, widest) -> None:
    twin = Twin(annotated.module, mode=mode)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        for block in twin.blocks(widest=widest):
            given, wanted = twin.value(block.input, x), twin.value(block.output, x)
            assert torch.equal(twin.compute_block(block, given, {}), wanted)
